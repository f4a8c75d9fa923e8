"""What an attacker or a bad disk makes of a file that was good."""

import io
import struct
import zipfile

DANGERS = [b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R", b"cbuiltins\neval\n", b"cposix\nsystem\n", b"\x8c\x02os\x8c\x06system\x93",
           b"ctorch\nload\n", b"(dp0\n",
           b"\x8c\x08builtins\x8c\x04exec\x93", b"i__main__\nX\n", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f"]


def mutated(content, suffix, dice):
    """One random change, or a few: bits, cuts, doublings, splices of what an attacker or a bad disk would leave."""
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        at = dice.randrange(max(1, len(data)))
        kind = dice.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + dice.randrange(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + dice.randrange(1, 256)] * dice.randrange(1, 4)
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", dice.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data)]))
        elif kind == 5:
            data[at:at] = dice.choice(DANGERS)
        elif kind == 6:
            digits = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
            if digits:
                place = dice.choice(digits)
                data[place : place + 1] = dice.choice([b"-1", b"9" * 30, b"0", b"1e9", b"NaN", b'"x"', b"[" * 500])
        else:
            data[at : at + 4] = bytes(dice.randrange(256) for _ in range(4))
    if suffix == "ckpt" and dice.random() < 0.5:
        return with_other_pickle(content, dice)
    return bytes(data)


def with_other_pickle(content, dice):
    """The zip in order, with true sums, and only its table of tensors damaged: what gets past the zip reader."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name.endswith("data.pkl"):
                for _ in range(dice.choice([1, 1, 2, 5])):
                    at = dice.randrange(len(data))
                    kind = dice.randrange(4)
                    if kind == 0:
                        data[at] = dice.randrange(256)
                    elif kind == 1:
                        del data[at : at + dice.randrange(1, 20)]
                    elif kind == 2:
                        data[at:at] = dice.choice(DANGERS)
                    else:
                        data[at:at] = data[at : at + dice.randrange(1, 400)]
            new.writestr(name, bytes(data))
    return made.getvalue()
