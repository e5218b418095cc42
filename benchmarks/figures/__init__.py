"""What texts say in numbers: each function makes a table or sentences of records, with the line that says where they come from.

A text names a function between `<!-- figures: NAME -->` and `<!-- end -->`; `python docs/fill.py` puts in what it returns. A
sentence here must be true whatever the numbers turn out to be.
"""

from __future__ import annotations

from figures import conformance, formats, gpu, kronecker, matrix, references, rules, sharded, speed, training
from figures.common import Figure

FIGURES: dict[str, Figure] = {
    function.__name__: function
    for function in (
        speed.headline, speed.speed, speed.training_steps, speed.first_step, speed.low_memory, speed.services,
        speed.release_memory, speed.subsets, rules.rules, rules.rules_summary, training.training, training.training_matrices, training.formats_training,
        formats.formats, formats.formats_safe, formats.formats_averages, formats.decay, gpu.gpu, gpu.gpu_summary, gpu.gpu_code, sharded.sharded,
        references.references, references.matrix_oracles, matrix.matrices, matrix.matrices_sweep, matrix.matrices_memory, kronecker.kronecker, conformance.conformance,
        sharded.sharded_bytes, sharded.many_ranks,
    )
}  # fmt: skip
"""By the name that texts use."""
