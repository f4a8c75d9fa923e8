def git_tag():
    return "v0-double"
