"""SGDiff's golden vectors, and an independent float64 reading of its encoder to check ours where they do not reach."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sgpipe.graph_encoder.batches import GraphBatch
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig

CONFIG = CgipConfig(objects=179, predicates=46, width=48, embed=32, layers=5)
CASES = ("a_mixed", "b_native", "c_shuffled", "d_empty_middle", "e_single")


def golden(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "golden/sgdiff_cgip.safetensors")


def golden_model(tensors: dict[str, Tensor], dtype: torch.dtype) -> Cgip:
    model = Cgip(CONFIG)
    model.load_state_dict({name: value for name, value in tensors.items() if "/" not in name})
    return model.to(dtype)


def golden_batch(tensors: dict[str, Tensor], case: str) -> GraphBatch:
    objects, triples, node_graph, edge_graph = (
        tensors[f"{case}/in/{name}"].clone() for name in ("objs", "triples", "obj_to_img", "triple_to_img")
    )
    return GraphBatch(
        len(tensors[f"{case}/out/global"]), objects, triples[:, 1], triples[:, [0, 2]], node_graph, edge_graph, triples[:, 1] > 0
    )


def reference_encoding(state: dict[str, Tensor], batch: GraphBatch, layers: int) -> tuple[Tensor, Tensor]:
    """Local rows (15) and global vectors, edge by edge and node by node in float64, from the description alone."""
    w = {name: value.double() for name, value in state.items()}

    def mlp(x: Tensor, prefix: str) -> Tensor:
        for part in ("0", "2"):
            x = torch.clamp(w[f"{prefix}.{part}.weight"] @ x + w[f"{prefix}.{part}.bias"], min=0)
        return x

    nodes = [w["obj_embeddings.weight"][i] for i in batch.nodes.tolist()]
    edges = [w["pred_embeddings.weight"][i] for i in batch.edges.tolist()]
    ends = batch.ends.tolist()
    hidden = w["graph_conv.net2.0.weight"].shape[1]
    for layer in ("graph_conv", *(f"graph_net.gconvs.{n}" for n in range(layers))):
        received: list[list[Tensor]] = [[] for _ in nodes]
        for row, (s, o) in enumerate(ends):
            made = mlp(torch.cat([nodes[s], edges[row], nodes[o]]), f"{layer}.net1")
            received[s].append(made[:hidden])
            received[o].append(made[-hidden:])
            edges[row] = made[hidden:-hidden]
        zero = torch.zeros(hidden, dtype=torch.float64)
        nodes = [mlp(sum(each, zero) / max(1, len(each)), f"{layer}.net2") for each in received]
    embed = len(nodes[0])
    local = torch.zeros(batch.count, 15, 3 * embed, dtype=torch.float64)
    pooled = torch.zeros(batch.count, embed, dtype=torch.float64)
    for n in range(batch.count):
        rows = [row for row, owner in enumerate(batch.edge_graph.tolist()) if owner == n]
        own = [nodes[i] for i, owner in enumerate(batch.node_graph.tolist()) if owner == n]
        for at, row in enumerate(rows[:15]):
            local[n, at] = torch.cat([nodes[ends[row][0]], edges[row], nodes[ends[row][1]]])
        zero = torch.zeros(embed, dtype=torch.float64)
        means = [sum(each, zero) / max(1, len(each)) for each in (own, [edges[row] for row in rows])]
        pooled[n] = w["graph_projection.weight"] @ torch.cat(means) + w["graph_projection.bias"]
    return local, pooled
