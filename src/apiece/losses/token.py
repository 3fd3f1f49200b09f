"""Cross-entropy on the text of an answer.

Shapes: R text rows, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apiece.losses.precision import at_least_float32
from apiece.types import Role

TEXT_ROLES = (Role.STRUCT, Role.DESC, Role.EOS)


def token_ce(logits_RV: Tensor, target_R: Tensor, role_R: Tensor) -> dict[Role, Tensor]:
    """Summed cross-entropy in nats by role: syntax, names, end.

    Args:
        logits_RV: Logits of the rows that predict text tokens.
        target_R: Ids.
        role_R: `Role` of each target; coordinate tokens are not among them.
    """
    ce_R = F.cross_entropy(at_least_float32(logits_RV), target_R, reduction="none")
    return {role: (ce_R * (role_R == role)).sum() for role in TEXT_ROLES}


def refusal(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """`-log(1 - p)` of tokens that should not have been written, nats, `[R]`.

    From the logits of all others: finite and with a gradient even where p rounds to 1.
    """
    logits_RV = at_least_float32(logits_RV)
    others_RV = logits_RV.scatter(1, ids_R[:, None], -torch.inf)
    return logits_RV.logsumexp(-1) - others_RV.logsumexp(-1)
