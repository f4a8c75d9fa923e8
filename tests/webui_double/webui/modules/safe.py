"""A rejected file is reported and becomes None, without an exception."""


def load(filename):
    with open(filename, "rb") as stream:
        content = stream.read()
    if content.startswith(b"rejected"):
        print("The file may be malicious, so the program is not going to read it.")
        return None
    return content
