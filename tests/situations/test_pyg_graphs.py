"""Graph classification in PyTorch Geometric: nodes until the pooling, one row for each graph after it."""

import torch
from situation import check, check_notes, needs
from torch import nn

import cka_probe as cp


def run(model, batch):
    return model(batch.x, batch.edge_index, batch.batch)


def setting():
    data, layers, loader = needs("torch_geometric.data"), needs("torch_geometric.nn"), needs("torch_geometric.loader")

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = layers.GCNConv(4, 8), layers.MeanAggregation()
            self.hidden, self.act, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x, edges, graph):
            return self.head(self.act(self.hidden(self.pool(self.conv(x, edges), graph))))

    generator = torch.Generator().manual_seed(0)
    molecules = []
    for nodes in range(3, 19):
        edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)
        molecules.append(data.Data(x=torch.randn(nodes, 4, generator=generator), edge_index=edges, y=nodes % 2))
    torch.manual_seed(0)
    return Graph(), loader.DataLoader(molecules, batch_size=8)


def test_the_layers_after_the_pooling():
    net, loader = setting()
    result = cp.compare(net, net, loader, layers=["pool", "hidden", "act", "head"], forward=run, progress=False)
    assert result.meta["samples"] == 16
    check(result, net, list(loader), run=run)
    check_notes(result)


def test_the_layers_before_the_pooling_compare_nodes():
    net, loader = setting()
    result = cp.compare(net, net, loader, layers=["conv"], forward=run, progress=False)
    assert result.meta["samples"] == sum(range(3, 19))
    check(result, net, list(loader), run=run)
    check_notes(result)
