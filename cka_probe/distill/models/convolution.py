"""A convolution without bias and the initial weights, shared by the networks of this room."""

from torch import nn

__all__ = ["convolution", "draw_weights"]


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def draw_weights(network: nn.Module, classifier_deviation: float | None = None) -> None:
    """Draw initial weights: convolutions from N(0, 2 / fan_out), biases 0, batch norms with weight 1 and bias 0.

    Parameters
    ----------
    network : torch.nn.Module
        The network; it is changed in place.
    classifier_deviation : float, optional
        Standard deviation of linear layers, whose biases become 0. If None, linear layers keep torch's initial weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and classifier_deviation is not None:
            nn.init.normal_(module.weight, std=classifier_deviation)
            nn.init.zeros_(module.bias)
