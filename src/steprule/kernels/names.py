"""A rule's names in a kernel, out of the way of the kernel's own.

While a kernel is written, the names of operands, hyperparameters and numbers of tensors bear a mark. Once its text is there,
all other names in it are known, and the marked ones get their final form.
"""

from __future__ import annotations

import re

_MARK = "$"
_FUNCTIONS = re.compile(r"^(?=@)", re.MULTILINE)
_TEXTS = re.compile(r'"""[\s\S]*?"""|#.*')
_MARKED = re.compile(re.escape(_MARK) + r"(\w+)")
_OTHERS = re.compile(rf"(?<![\w{_MARK}])[^\W\d]\w*")
_NUMBERED = re.compile(r"[st]\d+|new_\w+")
"""What kernels call numbers that they compute: told apart everywhere, and not only where both occur."""
GIVEN = ("step", "grad_factor")
"""Names in a formula that are the kernel's own."""


def marked(name: str) -> str:
    """A rule's name, to be written into a kernel; not one that is made of it by something before or after."""
    return name if name in GIVEN else _MARK + name


def is_name(text: str) -> bool:
    """Whether it is a name, marked or not."""
    return text.removeprefix(_MARK).isidentifier()


def told_apart(code: str) -> str:
    """The code with marked names as they are, or followed by _ where a function that has one also has such a name itself."""
    concerned = "".join(one for one in _FUNCTIONS.split(code) if _MARK in one)
    taken, names = set(_OTHERS.findall(_TEXTS.sub("", concerned))), set(_MARKED.findall(concerned))
    final = {}
    for name in sorted(names):
        local = name + "_" if name in taken or _NUMBERED.fullmatch(name) else name
        while local != name and local in taken | names:
            local += "_"
        final[name] = local
        taken.add(local)
    return _MARKED.sub(lambda found: final[found[1]], code)
