"""Names of version 0.1 still import: the public ones from their packages, modules that moved by their old paths."""

import importlib
import subprocess
import sys

import pytest

import cka_probe

OF_0_1 = {
    "cka_probe.comparison": ["compare", "compare_many"],
    "cka_probe.similarity": ["SimilarityMatrix"],
    "cka_probe.extraction": ["extract"],
    "cka_probe.callbacks": ["SimilarityHistory"],
    "cka_probe.sources": ["load_model"],
    "cka_probe.estimators.measures": ["MEASURES", "uncentred_alignment"],
    "cka_probe.estimators.moments": ["MomentCKA"],
    "cka_probe.distill.losses": ["FeatureCKALoss", "LogitCKALoss", "RCKALoss"],
    "cka_probe.distill.contract": ["DistillationLoss"],
    "cka_probe.distill.dense": ["PatchCKALoss", "SegmentationCKALoss"],
    "cka_probe.distill.dense.pyramid": ["PatchCKALoss"],
    "cka_probe.distill.detection": ["distill_detector", "average_precision", "PAPER_ROWS"],
    "cka_probe.distill.segmentation": ["distill_segmenter"],
    "cka_probe.distill.scenes": ["make_scenes", "SceneFolders"],
    "cka_probe.distill.language": ["HiddenStateCKALoss"],
    "cka_probe.distill.recipe": ["Recipe"],
    "cka_probe.distill.tables": ["summarise"],
    "cka_probe.distill.taps": ["TappedModel"],
    "cka_probe.distill.training": ["distill"],
}


@pytest.mark.parametrize("module", OF_0_1)
def test_public_names_of_0_1(module):
    found = importlib.import_module(module)
    assert [name for name in OF_0_1[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("old", sorted(cka_probe._MOVED))
def test_an_old_path_is_the_module_itself(old):
    assert importlib.import_module(old) is importlib.import_module(cka_probe._MOVED[old])


def test_old_paths_work_before_the_new_ones_are_loaded():
    code = "from cka_probe.distill.language import match_depths; import cka_probe.callbacks; print(match_depths(2, 6))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[(0, 2), (1, 5)]"


def test_other_names_are_missing_as_before():
    with pytest.raises(ModuleNotFoundError, match=r"cka_probe\.nowhere"):
        importlib.import_module("cka_probe.nowhere")
