"""Which providers that can be written to does a test need? They are imported by their processes too."""

import contextlib
import os
import time

import numpy as np


class Shelf:
    """The bytes of a file; each call is a line of a log beside it.

    While there is a file of the same name with `.act`, write_from does what the act in it says, once or always.
    """

    concurrent = True

    def __init__(self, path, **traits):
        self.path = str(path)
        self.nbytes = os.path.getsize(self.path)
        self.kept = []
        vars(self).update(traits)

    def __getstate__(self):
        return {**vars(self), "kept": []}

    def _say(self, what, offset, nbytes):
        out = os.open(self.path + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(out, f"{what} {offset} {nbytes} {os.getpid()}\n".encode())
        os.close(out)

    def read_into(self, buffer, offset):
        self._say("read", offset, len(buffer))
        with open(self.path, "rb") as file:
            file.seek(offset)
            file.readinto(buffer)

    def write_from(self, buffer, offset):
        self._say("write", offset, len(buffer))
        act, once = self._act()
        if once:
            os.unlink(self.path + ".act")
        if act is not None and act != "flush_raises":
            return getattr(self, "act_" + act)(buffer, offset)
        return self._write(buffer, offset)

    def flush(self):
        self._say("flush", 0, 0)
        if self._act()[0] == "flush_raises":
            raise ValueError("no flush today")

    def _act(self):
        with contextlib.suppress(FileNotFoundError), open(self.path + ".act") as file:
            act, _, once = file.read().partition(" ")
            return act, once == "once"
        return None, False

    def _write(self, buffer, offset):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(buffer)

    def act_raises(self, buffer, offset):
        raise ValueError(f"not at {offset}")

    def act_oserror(self, buffer, offset):
        raise OSError(28, "the shelf is full")

    def act_permission(self, buffer, offset):
        raise PermissionError(13, "not yours")

    def act_meets(self, buffer, offset):
        """Writes once another process is writing too."""
        deadline = time.monotonic() + 20
        while len(self._writers()) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("nobody else writes")
            time.sleep(0.002)
        return self._write(buffer, offset)

    def _writers(self):
        with open(self.path + ".log") as log:
            return {line.split()[3] for line in log if line.startswith("write")}

    def act_short(self, buffer, offset):
        self._write(buffer, offset)
        return len(buffer) - 1

    def act_long(self, buffer, offset):
        return len(buffer) + 1

    def act_text(self, buffer, offset):
        return "all of it"

    def act_count(self, buffer, offset):
        self._write(buffer, offset)
        return np.int64(len(buffer))

    def act_keeps(self, buffer, offset):
        self.kept.append(buffer[1:])

    def act_keeps_array(self, buffer, offset):
        self.kept.append(np.frombuffer(buffer, "u1"))

    def act_changes(self, buffer, offset):
        buffer[0] = 1

    def act_changes_array(self, buffer, offset):
        np.frombuffer(buffer, "u1")[0] = 1

    def act_dies(self, buffer, offset):
        os._exit(3)

    def act_hangs(self, buffer, offset):
        time.sleep(3600)

    def act_waits(self, buffer, offset):
        """For the act to be taken away; writes then, however late."""
        while os.path.exists(self.path + ".act"):
            time.sleep(0.001)
        return self._write(buffer, offset)

    def act_touches_itself(self, buffer, offset):
        import lazymem as lm

        return int(lm.from_provider(self, block_nbytes="4 KiB")[offset])


class ReadOnly:
    """It can do all but be written to."""

    nbytes = 10000

    def read_into(self, buffer, offset):
        buffer[:] = bytes(len(buffer))
