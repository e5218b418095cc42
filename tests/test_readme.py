"""What the README shows is so."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import steprule
from steprule.engine.codegen import write_kernel
from steprule.engine.trace import trace
from steprule.rules import AdamW

README = Path(__file__).parent.parent / "README.md"


def test_its_examples_give_what_they_say():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted >= 3 and result.failed == 0


def test_its_adamw_is_the_one_in_the_library():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "class AdamW(Rule)" in block]
    namespace = {name: getattr(steprule, name) for name in steprule.__all__}
    exec(compile(source, "README.md", "exec"), namespace)
    shown = namespace["AdamW"]
    kernels = [write_kernel("", trace(rule, rule.hyperparameters), ["float32"] * 4) for rule in (shown, AdamW)]
    assert kernels[0] == kernels[1]
    assert shown.__doc__ == AdamW.__doc__.split("\n")[0]
