"""What the README shows is so."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import steprule
from steprule.kernels.cpu_pass import write_pass
from steprule.rules import AdamW
from steprule.trace.tracing import trace

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_its_examples_give_what_they_say():
    runner = doctest.DocTestRunner()
    for number, block in enumerate(BLOCKS):
        runner.run(doctest.DocTestParser().get_doctest(block, {}, f"block {number}", "README.md", 0))
    assert runner.tries >= 3 and runner.failures == 0


def test_its_adamw_is_the_one_in_the_library():
    (source,) = [block for block in BLOCKS if "class AdamW(Rule)" in block]
    namespace = {name: getattr(steprule, name) for name in steprule.__all__}
    exec(compile(source, "README.md", "exec"), namespace)
    shown = namespace["AdamW"]
    kernels = [write_pass("", trace(rule, rule.hyperparameters).last, ["float32"] * 4) for rule in (shown, AdamW)]
    assert kernels[0] == kernels[1]
    assert shown.__doc__ == AdamW.__doc__.split("\n")[0]
