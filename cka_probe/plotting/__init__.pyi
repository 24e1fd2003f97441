from .costs import plot_costs, plot_time_and_memory
from .grams import centred_gram, plot_gram, plot_gram_pairs
from .grids import plot_before_after, plot_difference, plot_heatmap_grid, plot_heatmap_with_error
from .heatmap import plot_heatmap
from .maps import map_positions, plot_dendrogram, plot_map
from .report import write_report
from .style import house_style
from .theory import plot_bound_slack, plot_bounds_along_training, plot_corridor
from .training import plot_accuracies, plot_layer_trends, plot_training_curves

__all__ = [
    "centred_gram",
    "house_style",
    "map_positions",
    "plot_accuracies",
    "plot_before_after",
    "plot_bound_slack",
    "plot_bounds_along_training",
    "plot_corridor",
    "plot_costs",
    "plot_dendrogram",
    "plot_difference",
    "plot_gram",
    "plot_gram_pairs",
    "plot_heatmap",
    "plot_heatmap_grid",
    "plot_heatmap_with_error",
    "plot_layer_trends",
    "plot_map",
    "plot_time_and_memory",
    "plot_training_curves",
    "write_report",
]
