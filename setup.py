"""What is compiled, and how? Everything else is in pyproject.toml.

Developer mode (LAZYMEM_DEVELOPER=1, as .ci/run sets it): warnings are errors. Elsewhere a new compiler's new warning breaks
nobody. LAZYMEM_DEBUG=1 compiles in the points where tests hold threads up (core/parking.h); LAZYMEM_SANITIZE=address,undefined
is for the sanitizers (tests/lanes.sh runs both). Each wants a build of its own: objects are not rebuilt for other flags.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup

extensions = []
if sys.platform.startswith("linux"):
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    developer = os.environ.get("LAZYMEM_DEVELOPER") == "1"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-cast-function-type"]
    lane = ["-DLAZYMEM_DEBUG"] if os.environ.get("LAZYMEM_DEBUG") == "1" else []
    sanitize = [f"-fsanitize={os.environ['LAZYMEM_SANITIZE']}"] if os.environ.get("LAZYMEM_SANITIZE") else []
    if sanitize:
        lane += [*sanitize, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    if developer:
        Options.warning_errors = True
    extensions = cythonize(
        [
            Extension(
                path[:-4].replace(os.sep, "."),
                [path],
                include_dirs=["lazymem/core"],
                depends=sorted(glob("lazymem/core/*.h")),
                extra_compile_args=["-O2", "-pthread", *lane, *(warnings if developer else [])],
                extra_link_args=["-pthread", *sanitize],
            )
            for path in sorted(glob("lazymem/core/*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": False,
            "show_performance_hints": False,
        },
        nthreads=os.cpu_count() or 1,
    )

setup(ext_modules=extensions, options={"build_ext": {"parallel": os.cpu_count() or 1}})
