"""Compare neural networks layer by layer with CKA and MMD, and distill one into another with the same estimators.

Names are imported when they are first used, so `import cka_probe` loads no torch.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Modules of 0.1 that moved; the old paths still import. Each line: package in 0.1, package today, names (old:new).
_MOVED = {
    f"cka_probe{old}.{name.partition(':')[0]}": f"cka_probe{new}.{name.rpartition(':')[2]}"
    for old, new, names in (
        ("", ".capture", "extraction streaming"),
        ("", ".comparison", "request feature_comparison:features callbacks:history parallel:processes"),
        ("", ".comparison", "statistics:minibatch dataset_scope:dataset gram_keeper:grams.keeper"),
        ("", ".distill.models", "sources"),
        (".capture", ".comparison.grams", "cuda side_stream"),
        (".plotting", ".similarity", "summary"),
        (".plotting", ".plotting", "distillation:training"),
        (".estimators", ".estimators.dataset", "blocks moments routes sketch projections moment_sums centred_sums"),
        (".estimators", ".estimators.dataset", "moment_layout unit_sums"),
        (".estimators", ".estimators.measures", "canonical dissimilarities layer_mmd neighbours pairing predictors"),
        (".estimators", ".estimators.measures", "shapes subspaces"),
        (".distill", ".distill.dense", "detection segmentation scenes"),
        (".distill", ".distill.losses", "adapters contract gather uncentred defined:checks grams:wide_gram"),
        (".distill", ".distill.losses", "language:hidden_states"),
        (".distill", ".distill.recipes", "recipe experiment tables methods"),
        (".distill", ".distill.taps", "stages"),
        (".distill", ".distill.training", "batches checkpoints diagnostics preparation result run_files run_state"),
        (".distill", ".distill.training", "schedules steps teacher_cache"),
        (".distill", ".capture", "restoring:state"),
        (".distill.dense", ".distill.dense", "training:loop"),
        (".distill.dense", ".distill.losses", "alignments patches score_maps pyramid:patch_cka"),
        (".distill.dense", ".distill.taps", "taps:map_tap"),
    )
    for name in names.split()
}


class _OldPaths:
    """Import hook: the old path of a module that moved imports the module itself."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None  # type: ignore[arg-type]

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(_MOVED[module.__name__])


sys.meta_path.append(_OldPaths())  # type: ignore[arg-type]
