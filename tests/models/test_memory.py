"""Memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import threading
from trimtab_models.memory import keep_freed_memory
if {keeps}:
    assert keep_freed_memory()
import torch

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def work():
    before = resident_mib()
    tensor = torch.ones(50 << 20)  # 200 MiB
    del tensor
    print(resident_mib() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_thread_frees_stays_with_the_process():
    def kept_mib(keeps: bool) -> int:
        command = [sys.executable, "-c", SCRIPT.format(keeps=keeps)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert kept_mib(True) >= 200
    assert kept_mib(False) < 50  # else this test shows nothing
