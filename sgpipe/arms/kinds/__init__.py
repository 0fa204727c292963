"""The kinds of arm, by the word that `arms.<name>.kind` takes. A new one is a file here, or elsewhere, and a line in `KINDS`."""

from sgpipe.arms.kinds.base import Kind
from sgpipe.arms.kinds.controlnet import ControlNet
from sgpipe.arms.kinds.feature_injection import FeatureInjection
from sgpipe.arms.kinds.graph_lora import GraphLora
from sgpipe.arms.kinds.graph_tokens import TokensAlone
from sgpipe.arms.kinds.relation_injection import RelationInjection
from sgpipe.arms.kinds.sgdiff import SgDiffArm
from sgpipe.arms.kinds.t2i_adapter import T2iAdapter
from sgpipe.arms.kinds.text_lora import TextLora

KINDS: dict[str, type[Kind]] = {
    "graph_lora": GraphLora, "text_lora": TextLora, "graph_tokens": TokensAlone, "sgdiff": SgDiffArm,
    "controlnet": ControlNet, "t2i_adapter": T2iAdapter, "relation_injection": RelationInjection,
    "feature_injection": FeatureInjection,
}  # fmt: skip
