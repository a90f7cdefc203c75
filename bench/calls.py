"""How many calls of other libraries give on lazy arrays what they give on ordinary ones?

The list and what runs it are the tests' own (tests/calls.py, tests/call_kit.py, tests/numpy_kit.py); here are the counts, rows
as of `python -m lazymem bench`. Needs pip install '.[calls,test]': a library that is missing is said, and has no row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def counted() -> Iterator[dict[str, Any]]:
    """Of each library, and of numpy's own tests in both forms: what its child counted."""
    import call_kit
    import numpy_kit
    from calls import LIBRARIES
    from support import USERS

    for library in LIBRARIES:
        yield {"case": library, **call_kit.run_in_child(library, USERS[0])}
    for form, delivery in zip(call_kit.FORMS, ("inline", "threads"), strict=True):
        summary = numpy_kit.run_in_child(form, delivery)
        if "absent" not in summary:
            summary |= {"calls": summary["read"] + len(summary["wrong"]), "equal": summary["read"]}
        yield {"case": f"numpy's own tests, {form}, {delivery}", **summary}


def main() -> None:
    from lazymem.bench.facts import facts

    common = facts("python bench/calls.py", False)
    for row in counted():
        if "absent" in row:
            print(f"{row['case']}: skipped: {row['absent']}", file=sys.stderr)
            continue
        wrong = row.pop("wrong")
        row |= {"value": row["equal"], "unit": "calls", "least": row["calls"], "ok": not wrong}
        print(json.dumps({"bench": "calls", **row} | common), flush=True)
        print(f"{row['case']:42} {row['version']:>10} {row['equal']:>5} of {row['calls']:>5}", file=sys.stderr)
        for call, said in wrong:
            print(f"    {call}\n        {said}", file=sys.stderr)


if __name__ == "__main__":
    main()
