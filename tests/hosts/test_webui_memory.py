"""The host's GPU, as far as it can be shown without one."""

import torch


def test_free_memory_of_the_hosts_device_is_asked_for_by_number(webui, monkeypatch):
    """The WebUI's device is "cuda", of which its own torch 2.1 does not know what is free."""
    from modules import devices

    from dreambooth_ext.hosts import webui_memory

    def of_torch_2_1(device=None):
        if not isinstance(device, int):
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return 2**30, 8 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", of_torch_2_1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert webui_memory.device_free() is None
    for device in ("cuda", "cuda:1"):
        monkeypatch.setattr(devices, "device", torch.device(device))
        assert webui_memory.device_free() == (2**30, 8 * 2**30)
        assert "1.0 GiB of 8.0 GiB free on the GPU" in webui_memory.measured()
