"""Attacks on those who write the answer down: what they call is replaced before they call it."""

from __future__ import annotations

from tests.failure.sandbox.attack import FAULT, Attack, harmless

#: Each line is run before `grade` returns 0.5: whoever writes the answer trusts none of it.
_PATCHES = {
    "json.dumps": "import json; json.dumps = lambda *_, **__: '{\"value\": NaN}'",
    "json's encoder": "import json; json.JSONEncoder.encode = json.encoder.encode_basestring = lambda *_: 'NaN'",
    "os.write": "os.write = lambda fd, data: len(data)",
    "os._exit": "os._exit = lambda status: None",
    "sys.exit": "sys.exit = lambda status=0: None",
    "os.write and os._exit": "os.write = print; os._exit = time.sleep",
    "math.isfinite": "import math; math.isfinite = lambda number: True",
    "isinstance": "import builtins; builtins.isinstance = lambda *_: True",
    "float": "import builtins; builtins.float = lambda number=0: 'evil'",
    "type": "import builtins; builtins.type = lambda *_: float",
    "repr and str": "import builtins; builtins.repr = builtins.str = lambda *_: 'NaN'",
    "len": "import builtins; builtins.len = lambda *_: 1 << 40",
    "Exception": "import builtins; builtins.Exception = builtins.BaseException = ()",
    "struct.pack": "struct.pack = lambda *_: bytes(8)",
    "every builtin": "import builtins\n    for name in list(vars(builtins)): setattr(builtins, name, None)",
    "the builtins, which it clears": "import builtins; vars(builtins).clear()",
    "the modules, which it clears": "sys.modules.clear()",
    "every module's names, which it clears": (
        "for module in list(sys.modules.values()):\n        vars(module).clear() if module else None"
    ),
    "the excepthook": "sys.excepthook = sys.unraisablehook = lambda *_: os._exit(0)",
    "the traceback module": "import traceback; vars(traceback).clear()",
}
_PATCHED = [
    harmless(f"replaces {name}", f"def grade(sample, item):\n    {body}\n    return 0.5\n", r"-?\d+\.\d+|" + FAULT)
    for name, body in _PATCHES.items()
]
_PATCHED += [
    harmless(
        f"replaces {name} and raises",
        f"def grade(sample, item):\n    {body}\n    raise ValueError('evil')\n",
        r"-?\d+\.\d+|" + FAULT,
    )
    for name, body in _PATCHES.items()
]
_PATCHED += [
    harmless(
        "changes the frames that called it",
        """
             def grade(sample, item):
                 frame = sys._getframe(1)
                 while frame is not None:
                     for name in list(frame.f_globals):
                         if not name.startswith("__"):
                             frame.f_globals[name] = None
                     frame = frame.f_back
                 return 0.5
             """,
        r"-?\d+\.\d+|" + FAULT,
    ),
    harmless(
        "traces the frames that called it",
        """
             def grade(sample, item):
                 def trace(frame, event, arg):
                     frame.f_trace = trace
                     raise SystemExit(0)
                 sys.settrace(trace)
                 frame = sys._getframe(1)
                 while frame is not None:
                     frame.f_trace = trace
                     frame = frame.f_back
                 return 0.5
             """,
        r"-?\d+\.\d+|" + FAULT,
    ),
    harmless(
        "audits what comes after it",
        """
             def grade(sample, item):
                 def hook(event, args):
                     raise SystemExit(0)
                 sys.addaudithook(hook)
                 return 0.5
             """,
        r"-?\d+\.\d+|" + FAULT,
    ),
    harmless(
        "calls the functions of its caller",
        """
             def grade(sample, item):
                 frame = sys._getframe(1)
                 for name, value in list(frame.f_globals.items()):
                     if callable(value) and not name.startswith("__") and not isinstance(value, type):
                         try:
                             value(*[0] * getattr(getattr(value, "__code__", None), "co_argcount", 0))
                         except Exception:
                             pass
                 return 0.5
             """,
        r"-?\d+\.\d+|" + FAULT,
    ),
    harmless(
        "changes what the number 1 is",
        """
             def grade(sample, item):
                 number = ctypes.c_uint32.from_address(id(1) + 24)
                 number.value = 7
                 return 1.0
             """,
        r"-?\d+\.\d+|" + FAULT,
    ),
]

ATTACKS: list[Attack] = _PATCHED
