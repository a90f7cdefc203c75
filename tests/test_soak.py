"""Does the soak do what it says, and would it find what it looks for?"""

import json
import sys
import time

import numpy as np
import pytest
from support import run_child

import lazymem as lm
from lazymem.core import samples
from lazymem.soak.board import Board, Row
from lazymem.soak.command import FAULTLESS
from lazymem.soak.content import bad_blocks, words
from lazymem.soak.round import can_move
from lazymem.soak.watch import where_they_stand

PYTHON = [sys.executable, "-m", "lazymem", "soak", "--json"]
# Seeds of rounds that end closed with guards in them, closed with threads that are told, by sys.exit, by SIGTERM.
GUARDS, TOLD, EXITS, TERMINATES = 0, 1, 6, 12


def soak(*arguments, user=None, timeout=60):
    status, out, err = run_child([*PYTHON, *map(str, arguments)], timeout, user)
    assert out, err
    return status, json.loads(out), err


def reference(seed, i):
    """splitmix64, in Python's own numbers."""
    mask = (1 << 64) - 1
    x = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_content():
    assert words(0, 1)[0] == 0xE220A8397B1DCDAF, "the generator's published first number"
    assert words(7, 100).tolist() == [reference(7, i) for i in range(100)]
    told = np.array([7, 4096, 4, 0], "u8")
    n = 64 * 512 + 3
    a = lm.from_provider(lm.CFunction(samples.mixed(), 8 * n, told), dtype="u8", block_nbytes=4096)
    bad = bad_blocks(7, 65, 4)
    assert 5 < bad.sum() < 30
    for block in range(65):
        part = slice(512 * block, min(512 * (block + 1), n))
        if bad[block]:
            with pytest.raises(lm.PageError):
                a[part] + 0
        else:
            assert np.array_equal(a[part] + 0, words(7, n)[part])
    assert told[3] >= bad.sum()
    lm.close(a)


def test_board(tmp_path):
    path = tmp_path / "board"
    path.touch()
    board, beside = (Board(str(path), ("eggs", "ham")) for _ in range(2))
    row = Row(board, 3)
    row.count("ham", 5)
    Row(board, 4).count("ham")
    assert beside.totals() == {"eggs": 0, "ham": 6}
    with row.within(0.01, "breakfast", 77):
        assert beside.late(10) is None
        time.sleep(0.02)
        assert "thread 77: breakfast" in beside.late(0)
    assert beside.late(0) is None


@pytest.mark.parametrize(("seed", "user"), [(GUARDS, "root"), (TOLD, "nobody")], ids=["guards", "told, without MOVE"])
def test_a_short_soak(seed, user):
    status, found, err = soak("--minutes", 0.03, "--seed", seed, user=user)
    assert (status, found["failures"]) == (0, []), err
    assert found["right"]
    assert found["seed"] == seed
    assert found["deliveries"]
    assert found["rounds"] == 1
    for name in (
        "faults", "filled", "bytes_compared", "opened", "closed", "drops", "operations", "signals", "kernel",
        "evicted", "evicts", "increments", "budgets",
    ):  # fmt: skip
        assert found[name], name
    assert can_move(seed) or not found["moved"]
    assert found["faults"] == found["filled"] + found["joins"] + found["failed"]
    for name in FAULTLESS:
        assert found[name] == 0, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [EXITS, TERMINATES], ids=["exit", "term"])
def test_rounds_that_end_in_the_midst_of_it(seed):
    status, found, err = soak("--minutes", 0.03, "--seed", seed)
    assert (status, found["failures"]) == (0, []), err


@pytest.mark.slow
@pytest.mark.parametrize(("how", "what"), [("bytes", "mismatches"), ("time", "hangs")])
def test_what_is_wrong_is_found(how, what):
    status, found, err = soak("--minutes", 0.01, "--seed", GUARDS, "--spoil", how)
    assert status == 1
    assert not found["right"]
    assert found[what] == 1
    assert f"python -m lazymem soak --seed {GUARDS} --minutes" in found["failures"][0]
    assert ("WRONG: spoiled: 1 of" if how == "bytes" else "wchan") in err


def test_where_they_stand():
    import os

    assert f"{os.getpid()}/task/{os.getpid()} " in where_they_stand([os.getpid()])
