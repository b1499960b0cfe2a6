"""The torch side of XMem's kinds: how upstream's networks are called when they are recorded."""

from collections.abc import Mapping
from typing import Any

from rvseg_jax.parity.kinds import TorchSide


def _call_encoders(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    del watch
    frame, masks, hidden = inputs["frame"], inputs["masks"], inputs["hidden"]
    key, shrinkage, selection, f16, f8, f4 = model.encode_key(frame)
    value, deep = model.encode_value(frame, f16, hidden, masks, is_deep_update=True)
    shallow_value, shallow = model.encode_value(frame, f16, hidden, masks, is_deep_update=False)
    single, single_deep = model.encode_value(frame, f16, hidden[:, :1], masks[:, :1], is_deep_update=True)
    updated, logits, probabilities = model.segment((f16, f8, f4), inputs["readout"], hidden, h_out=True, strip_bg=False)
    return {
        **{"key": key, "shrinkage": shrinkage, "selection": selection, "f16": f16, "f8": f8, "f4": f4},
        **{"value": value, "hidden_deep": deep, "value_no_deep": shallow_value, "hidden_no_deep": shallow},
        **{"value_single": single, "hidden_single": single_deep, "segment_hidden": updated},
        **{"segment_logits": logits, "segment_prob": probabilities},
    }


ENCODERS = TorchSide(_call_encoders, ("frame", "masks", "hidden", "readout"))
