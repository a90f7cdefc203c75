/* Is the interpreter ending?  Any thread may ask, without the GIL. */
#ifndef LAZYMEM_ENDING_H
#define LAZYMEM_ENDING_H

#include <Python.h>

#if PY_VERSION_HEX >= 0x030d0000
#define lm_finalizing() Py_IsFinalizing()
#else
#define lm_finalizing() _Py_IsFinalizing()
#endif

#endif
