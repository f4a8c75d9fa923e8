device = "cpu"
swept = 0


def torch_gc():
    global swept
    swept += 1
