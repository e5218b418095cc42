"""Reads a kernel's machine code: the instructions that a thread executes for its elements, apart from rare ways round."""

from __future__ import annotations

import re
import subprocess
import tempfile
from heapq import heappop, heappush
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LABEL = re.compile(r"^(\.[\w$.]+|\$[\w$.]+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
JUMP = re.compile(r"\bBRA\b.*`\((\S+?)\)")
ENDS = re.compile(r"\b(EXIT|RET)\b")
CONDITION = re.compile(r"^@|\bBRA(?:\.\w+)*\s+!?U?P\d")


class Code:
    """A kernel's instructions in blocks, which are entered at their first one and left after their last.

    Attributes:
        blocks: each block's instructions, in the order of their addresses.
        following: the numbers of the blocks that may come after each.
    """

    def __init__(self, cubin: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            text = subprocess.run(
                [TOOLS / "nvdisasm", "-c", file.name], check=True, capture_output=True, text=True
            ).stdout
        self.blocks: list[list[str]] = [[]]
        labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := LABEL.match(line.strip()):
                self.blocks.append([])
                labels[label[1]] = len(self.blocks) - 1
            elif found := INSTRUCTION.match(line):
                self.blocks[-1].append(found[1])
                if JUMP.search(found[1]) or ENDS.search(found[1]):
                    self.blocks.append([])
        self.following: list[list[int]] = []
        for number, block in enumerate(self.blocks):
            last = block[-1] if block else ""
            jump, ends = JUMP.search(last), ENDS.search(last)
            after = [labels[jump[1]]] if jump else []
            if (not jump and not ends) or CONDITION.search(last):
                after.append(number + 1)
            self.following.append([one for one in after if one < len(self.blocks)])

    def shortest(self, begin: int, end: int) -> list[str]:
        """The fewest instructions from a block to another: rare ways round are longer."""
        found: dict[int, list[str]] = {}
        waiting = [(len(self.blocks[begin]), begin, self.blocks[begin])]
        while waiting:
            _, number, so_far = heappop(waiting)
            if number in found:
                continue
            found[number] = so_far
            for one in self.following[number]:
                if one not in found:
                    longer = so_far + self.blocks[one]
                    heappush(waiting, (len(longer), one, longer))
        return found[end]

    @property
    def of_elements(self) -> list[str]:
        """What is executed once for the elements that a thread has at a time: a loop over them, or all up to the last store."""
        busy = [number for number, block in enumerate(self.blocks) if re.search(r"\b(LDG|STG)\b", " ".join(block))]
        loops = [
            (first, last)
            for last, after in enumerate(self.following)
            for first in after
            if first <= last and any(first <= one <= last for one in busy)
        ]
        if loops:
            return self.shortest(*max(loops, key=lambda loop: loop[1] - loop[0]))
        return self.shortest(0, busy[-1])
