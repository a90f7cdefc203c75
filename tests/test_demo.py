"""Does the demonstration show what it says: right values, few bytes moved, nothing left behind?"""

import json
import os
import sys
import time

import pytest
from support import PAGE, check_child, each_user, run_child

DEMO = ["-m", "lazymem", "demo"]
LIMIT_S = 20


def demo(user, folder, *flags, arguments=("--json",)):
    """Its output, in a temporary folder of its own that must be empty afterwards."""
    status, out, err = run_child(
        [sys.executable, *flags, *DEMO, *arguments], timeout=LIMIT_S, user=user, env={"TMPDIR": str(folder)}
    )
    assert (status, err) == (0, ""), err
    assert os.listdir(folder) == []
    return out


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("flags", [(), ("-X", "faulthandler"), ("-W", "error")], ids=["plain", "faulthandler", "warnings"])
def test_facts(user, folder, flags):
    start = time.monotonic()
    found = json.loads(demo(user, folder, *flags))
    assert time.monotonic() - start < LIMIT_S
    assert found["right"] is True
    for part in (found["file"], found["function"]):
        assert len(part["touched"]) >= 5
        assert all(touch["right"] and touch["value"] == touch["expected"] for touch in part["touched"])
        assert {touch["what"].split()[0] for touch in part["touched"]} == {"numpy", "pointer"}
        # Each touch moved one block, and nothing else did.
        assert part["faults"] == part["blocks_resident"] == len(part["touched"])
        assert 0 < part["nbytes_moved"] <= part["faults"] * part["block_nbytes"]
        assert part["touch"]["faults"] == part["touch"]["touches"] >= 24
        assert 0 < part["touch"]["again_ns"] < part["touch"]["first_ns"]
    assert found["file"]["file_nbytes"] == 128 + 10**9
    assert found["file"]["nbytes_moved"] < found["file"]["file_nbytes"] / 1000
    assert found["function"]["nbytes"] == 1 << 40
    assert found["function"]["nbytes_moved"] < 1 << 20
    python, url = found["python"], found["url"]
    for part in (python, url):
        assert all(touch["right"] and touch["value"] == touch["expected"] for touch in part["touched"])
        assert {touch["what"].split()[0] for touch in part["touched"]} == {"numpy", "pointer"}
        # What is asked for before it is touched is no fault; each touch moved one block, and nothing else did.
        assert part["blocks_resident"] == len(part["touched"]) > part["faults"]
    assert all(touch["right"] for touch in python["lambda"])
    assert python["touch"]["faults"] == python["touch"]["touches"]
    assert url["requests"] == 1 + len(url["touched"])  # one to open it
    assert url["nbytes_moved"] <= len(url["touched"]) << 20


def test_text(folder):
    out = demo(None, folder, arguments=())
    lines = out.splitlines()
    assert 40 <= len(lines) <= 60
    assert max(map(len, lines)) <= 127
    assert sum(line.endswith("right") for line in lines) == 22
    assert "Every value was right" in lines[-1]
    residents = [line.strip() for line in lines if "Resident blocks" in line]
    assert residents[0].startswith("Resident blocks: 6/15259  384 KiB/954 MiB  ")
    assert residents[1].startswith("Resident blocks: 5/16777216  320 KiB/1 TiB  ")
    charts = [line.strip() for line in lines if line.strip().startswith("[")]
    assert [len(c) for c in charts] == [62] * 4


def test_a_wrong_value_is_not_called_right():
    """The demonstration compares: with one page of the file altered it says so, and fails."""
    out = check_child(
        """
        from lazymem.cli import demo
        written = demo.write_sparse
        def altered(path):
            written(path)
            with open(path, "r+b") as file:
                file.seek(128 + 8 * demo.PLACES[1])
                file.write(bytes(8))
        demo.write_sparse = altered
        from lazymem.cli import main
        print("status", main(["demo"]))
        """
    )
    assert out.splitlines()[-1] == "status 1"
    assert out.count("WRONG, expected 31,415,926") == 2  # the file, and the same file behind a URL
    assert "SOME VALUES WERE WRONG" in out


def test_no_room_for_the_file_is_said_plainly(folder):
    """RLIMIT_FSIZE stands for a file system that cannot hold 1 GB."""
    code = f"""
    import os, resource, sys
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    os.execv(sys.executable, [sys.executable, *{DEMO!r}])
    """
    status, _, err = run_child(code, env={"TMPDIR": str(folder)})
    assert status == 1
    assert err.startswith("python -m lazymem demo: ")
    assert "Traceback" not in err
    assert os.listdir(folder) == []


def test_chart_marks_full_some_and_none():
    import lazymem as lm
    from lazymem.cli.chart import chart, resident_line

    a = lm.from_provider(bytes(120 * PAGE), block_nbytes=PAGE)
    assert chart(a) == "[" + " " * 60 + "]"
    lm.populate(a[: 4 * PAGE])
    lm.populate(a[118 * PAGE : 119 * PAGE])
    assert chart(a) == "[OO" + " " * 57 + "o]"
    assert resident_line(a).startswith("Resident blocks: 5/120  ")
    assert resident_line(a).endswith("  4.17%")
    few = lm.from_provider(bytes(2 * PAGE), block_nbytes=PAGE)
    lm.populate(few)
    assert chart(few) == "[OO]"
    assert resident_line(few).endswith("  100%")
    lm.close(a)
    lm.close(few)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 9, 3 * PAGE, 3 * PAGE + 5])
def test_iota_writes_indices_at_any_length(nbytes, delivery):
    import numpy as np

    import lazymem as lm
    from lazymem.core import samples

    a = lm.from_provider(lm.CFunction(samples.iota(), nbytes), delivery=delivery, block_nbytes=PAGE)
    wanted = np.arange(nbytes // 8 + 1, dtype="i8").tobytes()[:nbytes]
    assert a.tobytes() == wanted
    a.close()
