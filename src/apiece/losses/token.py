"""Cross-entropy on the text of an answer.

Shapes: R text rows, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from apiece.types import LossTerm, Per, Role


def token_ce(
    logits_RV: Tensor, target_R: Tensor, role_R: Tensor, *, weight: float, desc_ce_weight: float
) -> list[LossTerm]:
    """One term per role: syntax, names, end. All are means over all supervised text tokens.

    Args:
        logits_RV: Float32 logits of the rows that predict text tokens.
        target_R: Ids.
        role_R: `Role` of each target; coordinate tokens are not among them.
        weight: Weight of the whole.
        desc_ce_weight: Further weight of names.
    """
    ce_R = F.cross_entropy(logits_RV.float(), target_R, reduction="none")
    parts = (("struct", Role.STRUCT, 1.0), ("desc", Role.DESC, desc_ce_weight), ("eos", Role.EOS, 1.0))
    return [
        LossTerm(f"token_ce/{name}", weight * part, (ce_R * (role_R == role)).sum(), Per.TOKENS)
        for name, role, part in parts
    ]
