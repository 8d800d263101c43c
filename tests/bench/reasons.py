"""Why a target is missed, one sentence each: what docs/benchmarks.md says of a target that was not met.

Written by hand from evidence; a sentence of a target that is met is not shown.
"""

REASONS: dict[str, str] = {}
