"""Node classification in PyTorch Geometric: the samples are the nodes of a graph, and ``forward=`` passes its edges."""

import torch
from situation import check, check_notes, needs
from torch import nn

import cka_probe as cp


def run(model, graph):
    return model(graph.x, graph.edge_index)


def graphs():
    data = needs("torch_geometric.data")
    generator = torch.Generator().manual_seed(0)
    for nodes in (12, 9):
        x, edges = torch.randn(nodes, 5, generator=generator), torch.randint(nodes, (2, 30), generator=generator)
        yield data.Data(x=x, edge_index=edges)


def network(layer, seed):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.act, self.conv2 = layer(5, 8), nn.ReLU(inplace=True), layer(8, 3)

        def forward(self, x, edges):
            return self.conv2(self.act(self.conv1(x, edges)), edges)

    torch.manual_seed(seed)
    return Graph()


def test_convolution_against_attention():
    layers = needs("torch_geometric.nn")
    gcn, gat, batches = network(layers.GCNConv, 0), network(layers.GATConv, 1), list(graphs())
    result = cp.compare(gcn, gat, batches, layers=["conv1", "act", "conv2"], forward=run, progress=False)
    assert result.meta["samples"] == 21
    check(result, gcn, batches, gat, run=run)
    check_notes(result)


def test_the_graph_convolution_is_a_layer_of_the_default_choice():
    gcn, batches = network(needs("torch_geometric.nn").GCNConv, 0), list(graphs())
    result = cp.compare(gcn, gcn, batches, forward=run, progress=False)
    assert {"conv1", "act", "conv2"} <= set(result.rows)
    check(result, gcn, batches, run=run)
