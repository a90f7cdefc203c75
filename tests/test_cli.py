"""Do the commands parse, help, answer in JSON and fail plainly?"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import check_child, each_user, run_child

import lazymem
from lazymem.cli import main

COMMANDS = ("doctor", "demo", "info", "bench")


def run(*arguments, user=None):
    return run_child([sys.executable, "-m", "lazymem", *arguments], user=user)


def test_help_names_every_command():
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: python -m lazymem ")
    for command in COMMANDS:
        line = next(line for line in out.splitlines() if line.split()[:1] == [command])
        assert len(line.split()) > 3, f"{command} has no help text"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command):
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m lazymem {command} ")
    about = out.split("\n\n")[1]
    assert len(about.split()) >= 4, about
    if command != "bench":  # its results are JSON anyway
        assert "--json" in out


def test_version():
    assert run("--version")[:2] == (0, f"lazymem {lazymem.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["docter"], ["info"], ["demo", "--speed"], ["info", "a.npy", "--shape", "3,x"]])
def test_wrong_usage_is_status_2(arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: ")
    assert "Traceback" not in err


def test_the_entry_point_is_the_module(monkeypatch):
    """`lazymem` is what `python -m lazymem` is: one function."""
    text = Path(lazymem.__file__).parent.parent.joinpath("pyproject.toml")
    if text.exists():
        import tomllib

        assert tomllib.loads(text.read_text())["project"]["scripts"] == {"lazymem": "lazymem.cli:main"}
    script = shutil.which("lazymem")
    if script:
        done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"lazymem {lazymem.__version__}\n"


def test_nothing_is_imported_before_it_is_needed():
    """A doctor must not fail because the benchmark's modules do."""
    out = check_child(
        """
        import sys
        from lazymem.cli import main
        try:
            main(["--help"])
        except SystemExit:
            pass
        main(["info", "/nowhere.npy"])
        print([m for m in sys.modules if m.startswith(("lazymem.bench", "lazymem.cli.d", "matplotlib"))])
        """,
        fresh=True,
    )
    assert out.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error():
    code = "from lazymem.cli import main; import sys; sys.exit(main(['doctor']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (141, b"")


# -- info


@pytest.fixture
def array_file(folder):
    """A Fortran-ordered .npy file of 3 blocks and a bit."""
    path = folder / "f.npy"
    np.save(path, np.asfortranarray(np.arange(26_000.0).reshape(130, 200)))
    return path


@each_user
def test_info_says_what_numpy_says(array_file, user):
    array_file.chmod(0o644)
    status, out, err = run("info", str(array_file), "--json", user=user)
    assert (status, err) == (0, "")
    found = json.loads(out)
    plain = np.load(array_file, mmap_mode="r")
    assert found["file"] == str(array_file)
    assert (found["dtype"], tuple(found["shape"]), found["order"]) == (str(plain.dtype), plain.shape, "F")
    assert (found["begins_at"], found["nbytes"]) == (plain.offset, plain.nbytes)
    assert found["block_nbytes"] == 64 << 10
    assert found["blocks"] == -(-plain.nbytes // (64 << 10))


def test_info_as_text(array_file, capsys):
    assert main(["info", str(array_file)]) == 0
    lines = dict(
        re.split(r"\s{2,}", line, maxsplit=1)
        for line in capsys.readouterr().out.replace("begins at ", "begins at  ").splitlines()
    )
    assert lines == {
        "file": str(array_file), "dtype": "float64", "shape": "(130, 200)", "order": "F", "begins at": "byte 128",
        "size": "203 KiB (208,000 bytes)", "blocks": "4 of 64 KiB",
    }  # fmt: skip


@pytest.mark.parametrize("made", [np.float32(3), np.zeros((0, 4)), np.zeros(3, "i2,f8")], ids=["0-d", "empty", "structured"])
def test_info_of_odd_arrays(folder, capsys, made):
    np.save(folder / "odd.npy", made)
    assert main(["info", str(folder / "odd.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found["shape"]) == made.shape
    assert np.dtype(eval(found["dtype"]) if found["dtype"].startswith("[") else found["dtype"]) == made.dtype
    assert found["nbytes"] == made.nbytes


def test_info_of_raw_elements(folder, capsys):
    (folder / "raw.bin").write_bytes(bytes(100))
    assert main(["info", str(folder / "raw.bin"), "--dtype", "i2", "--offset", "4", "--shape=-1,6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["begins_at"], found["dtype"]) == ([8, 6], 4, "int16")


def test_info_reads_no_element(array_file):
    """An array of 1 GB is told about as fast as one of 1 KB: no block is put in place."""
    out = check_child(
        f"""
        import lazymem as lm
        from lazymem.cli import info
        seen = []
        region = lm.region
        lm.region = lambda x: seen.append(region(x)) or seen[-1]
        stats = lm.LazyArray.__exit__
        def leave(self, *exc):
            seen.append(lm.stats(self))
            stats(self, *exc)
        lm.LazyArray.__exit__ = leave
        info.facts({str(array_file)!r}, None, None, 0)
        print(seen[-1].blocks, seen[-1].faults)
        """
    )
    assert out == "0 0\n"


@pytest.mark.parametrize(
    ("name", "content", "arguments", "said"),
    [
        ("missing.npy", None, [], "missing.npy"),
        ("raw.bin", bytes(10), [], "dtype="),
        ("raw.bin", bytes(10), ["--dtype", "f8"], "10 bytes"),
        ("raw.bin", bytes(10), ["--dtype", "no-such"], "no-such"),
        ("raw.bin", bytes(10), ["--dtype", "O"], "Python objects"),
        ("damaged.npy", b"\x93NUMPY\x01\x00\xff\xff{", [], "not a readable .npy file"),
        ("short.npy", "short", [], "cut short"),
    ],
)
def test_info_says_what_is_wrong_in_one_line(folder, capsys, name, content, arguments, said):
    path = folder / name
    if content == "short":
        np.save(path, np.zeros(100))
        path.write_bytes(path.read_bytes()[:-1])
    elif content is not None:
        path.write_bytes(content)
    assert main(["info", str(path), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "lazymem info: " in err
    assert "Traceback" not in err


def test_info_wants_a_dtype_for_raw_places(array_file, capsys):
    assert main(["info", str(array_file), "--offset", "8"]) == 2
    assert "--dtype" in capsys.readouterr().err
