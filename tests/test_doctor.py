"""Does the doctor tell the truth, on machines where lazymem works, works in part, and does not?"""

import json
import os
import sys

import pytest
from filter_kit import ERRNOS, run_refused
from support import IS_ROOT, as_nobody, check_child, each_user, needs_root, run_child

DOCTOR = ["-m", "lazymem", "doctor"]


def doctor(user=None, *flags):
    """Its exit status and JSON."""
    status, out, err = run_child([sys.executable, *flags, *DOCTOR, "--json"], user=user)
    assert not err, err
    return status, json.loads(out)


def device_is_open_to(user):
    code = "import os; print(os.access('/dev/userfaultfd', os.R_OK | os.W_OK))"
    return check_child(code, user=user).strip() == "True"


@needs_root
def test_root_is_told_that_it_works_fully():
    status, found = doctor()
    assert status == 0
    assert found["works"]
    assert found["kernel_faults"]
    assert found["auto"] == "threads"
    assert found["verdict"].startswith("works fully")
    assert all(t["right"] and t["array_write"] == "right" for t in found["trials"])
    assert {t["asked"]: t["system_call"] for t in found["trials"]} == {
        "auto": "right",
        "threads": "right",
        "inline": "EFAULT",
        "mprotect": "EFAULT",
    }


def test_an_ordinary_user_is_told_of_user_faults_and_remedies():
    if device_is_open_to("nobody"):
        pytest.skip("ordinary users may open /dev/userfaultfd here")
    status, found = doctor("nobody")
    if found["privileges"]["unprivileged_userfaultfd"] == 1:
        pytest.skip("vm.unprivileged_userfaultfd is 1 here")
    assert status == 0
    assert found["works"]
    assert not found["kernel_faults"]
    assert found["auto"] == "inline"
    assert found["verdict"].startswith("works with user faults only")
    assert {t["asked"]: t["system_call"] for t in found["trials"]} == {
        "auto": "EFAULT",
        "threads": "EFAULT",
        "inline": "EFAULT",
        "mprotect": "EFAULT",
    }
    assert all(t["right"] and t["array_write"] == "right" for t in found["trials"])
    ways = json.dumps(found["remedies"])
    for word in (
        "sysctl vm.unprivileged_userfaultfd=1",
        "--device /dev/userfaultfd",
        "Kubernetes",
        "lazymem.populate",
        "file.write(a)",
    ):
        assert word in ways, word
    user = found["privileges"]["user"]
    assert (f"setfacl -m u:{user}:rw /dev/userfaultfd" in ways) == found["privileges"]["device"]["there"]


@each_user
def test_what_it_says_agrees_with_what_arrays_do(user):
    _, found = doctor(user)
    assert [t["guarded"] for t in found["trials"]] == [True, True, True, None]
    assert not any("close_range" in r["what"] for r in found["remedies"])
    took = check_child(
        """
        import lazymem as lm
        region = lm.region(lm.from_provider(bytes(10)))
        print(region.delivery, region.kernel_faults)
        """,
        user=user,
    )
    assert took.split() == [found["auto"], str(found["kernel_faults"])]


@each_user
def test_text_says_the_verdict_first_and_every_topic(user):
    status, out, err = run_child([sys.executable, *DOCTOR], user=user)
    assert status == 0, err
    first, second, *_ = out.splitlines()
    assert first.startswith("lazymem works")
    assert "delivery 'auto' takes '" in first
    assert second == ""
    for topic in ("kernel", "seccomp", "/dev/userfaultfd", "vm.unprivileged_userfaultfd", "SIGBUS", "THREAD_ID", "POISON",
                  "MOVE", "closes our userfaultfd arrays go on",
                  "cores", "memory", "vm.max_map_count", "vm.overcommit_memory", "numpy",
                  os.uname().release):  # fmt: skip
        assert topic in out, topic
    assert max(map(len, out.splitlines())) <= 127


def test_features_are_those_of_the_kernel():
    """Against the bits that the kernel reports, by number."""
    from lazymem.core import uffd

    mask = next(features for _, error, features in uffd.probe() if error == 0)
    _, found = doctor()
    assert sum(1 << f["bit"] for f in found["features"] if f["there"]) == mask & ((1 << 17) - 1)
    names = {f["name"]: f["bit"] for f in found["features"]}
    assert (names["SIGBUS"], names["THREAD_ID"], names["POISON"], names["WP_ASYNC"], names["MOVE"]) == (7, 8, 14, 15, 16)


@pytest.mark.parametrize("flags", [(), ("-X", "faulthandler")])
def test_faulthandler_is_named_as_owner_of_sigbus(flags):
    status, found = doctor(None, *flags)
    assert status == 0
    assert found["signals"]["faulthandler"] == bool(flags)
    assert found["signals"]["sigbus_owner"] == ("faulthandler" if flags else "nobody")


@each_user
def test_that_nobody_can_hold_the_descriptor_is_said(user):
    status, out, err = run_refused("ENOSYS", [*DOCTOR, "--json"], user, calls=("close_range",), device=False)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert {t["asked"]: t["guarded"] for t in found["trials"]} == {
        "auto": False, "threads": False, "inline": False, "mprotect": None,
    }  # fmt: skip
    assert all(t["right"] for t in found["trials"])
    said = [r for r in found["remedies"] if "close_range" in r["what"]]
    assert len(said) == 1
    assert any("close_range" in way["do"] for way in said[0]["ways"])
    _, out, _ = run_refused("EPERM", DOCTOR, user, calls=("close_range",), device=False)
    assert "arrays LOSE THEIR MEMORY" in out


@each_user
@pytest.mark.parametrize("errno_name", ["EPERM", "ENOSYS"])
class TestUnderASeccompFilter:
    """Trap 57: what a container's default profile answers."""

    @pytest.mark.thin
    def test_verdict_and_remedies(self, errno_name, user):
        status, out, err = run_refused(errno_name, [*DOCTOR, "--json"], user)
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert found["works"]
        assert found["auto"] == "mprotect"
        assert not found["kernel_faults"]
        assert found["features"] is None
        assert found["verdict"].startswith("works without userfaultfd")
        device = found["privileges"]["rungs"][0]["errno_name"]
        for word in ("no userfaultfd", errno_name, device, "mprotect"):
            assert word in found["auto_because"], found["auto_because"]
        assert found["privileges"]["seccomp"] == "filter"
        assert [r["errno_name"] for r in found["privileges"]["rungs"][1:]] == [errno_name, errno_name]
        trials = {t["asked"]: t for t in found["trials"]}
        for how in ("auto", "mprotect"):
            assert trials[how]["right"]
            assert trials[how]["delivery"] == "mprotect"
            assert (trials[how]["system_call"], trials[how]["array_write"]) == ("EFAULT", "right")
        for how in ("threads", "inline"):
            error = trials[how]["error"]
            assert "lazymem doctor" in error
            assert error.startswith(("OSError", "PermissionError"))
        ways = json.dumps(found["remedies"])
        for word in (
            "--device /dev/userfaultfd",
            "SCMP_ACT_ALLOW",
            "--security-opt seccomp=",
            "localhostProfile",
            "SystemCallFilter",
            "lazymem.populate",
            "fork copies",
        ):
            assert word in ways, word
        assert "sysctl" not in ways  # it would not help: the filter stands in front

    @pytest.mark.thin
    def test_text(self, errno_name, user):
        status, out, err = run_refused(errno_name, DOCTOR, user)
        assert (status, err) == (0, "")
        assert out.startswith("lazymem works without userfaultfd; delivery 'auto' takes 'mprotect'")
        assert "Traceback" not in out
        assert "since there is no userfaultfd" in out
        assert "--device /dev/userfaultfd" in out

    @pytest.mark.thin
    @pytest.mark.parametrize("command", [["demo"], ["demo", "--json"]])
    def test_the_demo_runs(self, errno_name, user, command):
        status, out, err = run_refused(errno_name, ["-m", "lazymem", *command], user)
        assert (status, err) == (0, "")
        assert "mprotect" in out

    def test_constructor(self, errno_name, user):
        code = (
            "import lazymem\n"
            "for delivery in ('auto', 'threads', 'inline'):\n"
            "    try: print(lazymem.region(lazymem.from_provider(bytes(8), delivery=delivery)).delivery)\n"
            "    except OSError as error: print(error.errno, error)\n"
        )
        status, out, err = run_refused(errno_name, ["-c", code], user)
        assert (status, err) == (0, "")
        first, *lines = out.splitlines()
        assert first == "mprotect"
        assert len(lines) == 2
        for line in lines:
            assert line.startswith(f"{ERRNOS[errno_name]} ")
            assert "lazymem doctor" in line


@pytest.mark.skipif(not IS_ROOT or not os.path.exists("/dev/userfaultfd"), reason="needs root and /dev/userfaultfd")
@pytest.mark.parametrize("errno_name", ["EPERM", "ENOSYS"])
def test_the_device_is_a_way_round(errno_name):
    """What `docker run --device /dev/userfaultfd` amounts to."""
    status, out, err = run_refused(errno_name, [*DOCTOR, "--json"], None, device=False)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["verdict"].startswith("works fully")
    assert found["privileges"]["rungs"][1]["errno_name"] == errno_name


@each_user
def test_blocked_sigbus_is_found_out(user):
    """A shell or supervisor that blocks SIGBUS hands that on."""
    code = f"""
    import os, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    os.execv(sys.executable, [sys.executable, *{[*DOCTOR, "--json"]!r}])
    """
    status, out, err = run_child(code, user=user)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["signals"]["sigbus_blocked"]
    right = {t["asked"]: t["right"] for t in found["trials"]}
    assert right["threads"]
    assert not right["inline"]
    if not right["auto"]:
        assert found["verdict"].startswith("works only with delivery='threads'")
    assert "pthread_sigmask" in json.dumps(found["remedies"])


def test_a_small_address_space_is_named():
    code = f"""
    import os, resource, sys
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    os.execv(sys.executable, [sys.executable, *{[*DOCTOR, "--json"]!r}])
    """
    status, out, err = run_child(code)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["machine"]["rlimits"]["AS"] == 4 << 30
    assert any("RLIMIT_AS is 4 GiB" in r["what"] for r in found["remedies"])


def test_a_trial_that_dies_or_hangs_is_a_finding():
    """Not the doctor's end: one child stands for each."""
    out = check_child(
        """
        import subprocess, sys, time
        from lazymem.cli import trial
        def child(code):
            return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        soon = time.monotonic() + 20
        died = trial._answer(child("import os; os.kill(os.getpid(), 7)"), "inline", soon)
        failed = trial._answer(child("raise SystemExit('no such thing')"), "inline", soon)
        hung = trial._answer(child("import time; time.sleep(600)"), "threads", time.monotonic())
        print(died["right"], died["error"])
        print(failed["right"], failed["error"])
        print(hung["right"], hung["error"])
        """
    )
    assert out.splitlines() == [
        "False died of signal 7: it said nothing",
        "False ended with status 1: no such thing",
        "False no answer within 20 s",
    ]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_it_says_so(system):
    code = f"""
    import sys
    sys.platform = {system!r}
    sys.argv = ["lazymem"]
    from lazymem.cli import main
    statuses = [main(["doctor"]), main(["doctor", "--json"]), main(["demo"]), main(["info", "a.npy"])]
    assert statuses == [1, 1, 1, 1], statuses
    """
    status, out, err = run_child(code)
    assert status == 0, err
    first, *_, last = out.splitlines()
    assert first.startswith("lazymem does not work: ")
    assert system in first
    assert json.loads(last)["works"] is False
    assert "lazymem demo: " in err
    assert "lazymem info: " in err
    assert "Traceback" not in err


@needs_root
def test_read_and_write_permission_on_the_device_is_enough(folder):
    """The remedy named first really is one: a copy of the device that everybody may open, seen by this child alone."""
    as_nobody()  # skips where an ordinary user cannot run this interpreter
    code = f"""
    import ctypes, os, sys
    from support import as_nobody
    prefix = as_nobody()
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 1 << 17, 1 << 12, 1 << 14, 1 << 18
    def must(result):
        if result:
            print("not here:", os.strerror(ctypes.get_errno()))
            sys.exit(77)
    must(libc.unshare(CLONE_NEWNS))
    must(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    copy = {str(folder / "device")!r}
    try:
        os.mknod(copy, 0o020666, os.stat("/dev/userfaultfd").st_rdev)
        os.chmod(copy, 0o666)
        os.close(os.open(copy, os.O_RDWR))  # not on a file system mounted without devices
    except OSError as error:
        print("not here:", error)
        sys.exit(77)
    must(libc.mount(copy.encode(), b"/dev/userfaultfd", None, MS_BIND, None))
    command = [*prefix, sys.executable, *{[*DOCTOR, "--json"]!r}]
    os.execvp(command[0], command)
    """
    status, out, err = run_child(code)
    if status == 77:
        pytest.skip(out.strip())
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert not found["privileges"]["root"]
    assert found["privileges"]["device"]["mode"] == "crw-rw-rw-"
    assert found["verdict"].startswith("works fully")
    assert all(t["right"] for t in found["trials"])
    assert not any("EFAULT" in r["what"] for r in found["remedies"])
