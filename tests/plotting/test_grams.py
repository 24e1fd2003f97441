"""Gram matrices equal their definition, are sorted by class, and the titles give their CKA."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import brute_force_gram

from cka_probe.plotting import centred_gram, plot_gram, plot_gram_pairs


class TestGrams:
    def test_centred_gram_is_its_definition(self):
        x = np.random.default_rng(1).normal(size=(7, 4))
        np.testing.assert_allclose(centred_gram(x), brute_force_gram(x.tolist()), atol=1e-14)

    @pytest.mark.parametrize("scale", [1e-200, 1e200])
    def test_centred_gram_of_extreme_scales(self, scale):
        x = np.random.default_rng(1).normal(size=(7, 4))
        np.testing.assert_allclose(centred_gram(x * scale), centred_gram(x), rtol=1e-9, atol=1e-12)

    def test_centred_gram_refuses(self):
        assert np.isnan(centred_gram(np.ones((3, 2)))).all()
        with pytest.raises(
            ValueError, match=r"`features` must have shape \(n, d\), got \(2, 2, 2\)\. Flatten maps first"
        ):
            centred_gram(np.ones((2, 2, 2)))
        with pytest.raises(ValueError, match="`features` holds NaN or infinity"):
            centred_gram([[np.nan]])

    def test_sorted_by_class(self):
        gram = np.arange(16.0).reshape(4, 4)
        ax = plot_gram(gram, labels=["dog", "cat", "dog", "cat"])
        order = [1, 3, 0, 2]  # samples of one class keep their order
        np.testing.assert_array_equal(ax.images[0].get_array(), gram[np.ix_(order, order)])
        assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog"]
        np.testing.assert_allclose(ax.get_yticks(), [0.5, 2.5])
        assert len(ax.lines) == 2  # one line between the two classes in each direction
        assert ax.images[0].origin == "upper"

    def test_unsorted_without_labels(self):
        gram = np.arange(16.0).reshape(4, 4)
        ax = plot_gram(gram, title="raw", colorbar=False)
        np.testing.assert_array_equal(ax.images[0].get_array(), gram)
        assert (len(ax.lines), ax.get_title(), ax.child_axes) == (0, "raw", [])

    def test_scale_is_centred_and_admits_what_lies_beyond(self):
        gram = np.eye(30) * 100 + 0.5
        ax = plot_gram(gram)
        assert ax.images[0].get_clim() == (-0.5, 0.5)  # the entries off the diagonal
        assert ax.images[0].colorbar.extend == "max"
        assert plot_gram(gram, limit=200).images[0].get_clim() == (-200, 200)
        assert plot_gram(np.eye(3)).images[0].get_clim() == (-1, 1)

    def test_as_many_class_names_as_have_room(self):
        ax = plot_gram(np.eye(300), labels=np.arange(300))
        ax.figure.canvas.draw()
        boxes = sorted((b.y0, b.y1) for b in (t.get_window_extent() for t in ax.get_yticklabels()))
        assert 5 < len(boxes) < 60
        assert all(after[0] > before[1] - 3 for before, after in pairwise(boxes))

    def test_refuses(self):
        for gram in (np.ones((2, 3)), np.ones(4), np.empty((0, 0))):
            with pytest.raises(ValueError, match=r"`gram` must have shape \(n, n\)"):
                plot_gram(gram)
        with pytest.raises(ValueError, match=r"`labels` must hold one class for each of the 2 samples, got \(3,\)"):
            plot_gram(np.eye(2), labels=[1, 2, 3])
        with pytest.raises(ValueError, match="`limit` must be positive, got -1"):
            plot_gram(np.eye(2), limit=-1)

    def test_pairs_show_the_cka_that_rcka_maximises(self):
        rng = np.random.default_rng(0)
        teacher, student = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
        labels = rng.integers(0, 3, 9)
        axes = plot_gram_pairs(teacher, student, labels=labels, class_names=list("wxyz"))
        assert axes.shape == (2, 2)
        intra = (brute_force_gram(teacher.tolist()) * brute_force_gram(student.tolist())).sum()
        inter = (brute_force_gram(teacher.T.tolist()) * brute_force_gram(student.T.tolist())).sum()
        assert axes[0, 0].get_title() == "teacher, 9 × 9 samples"
        assert axes[0, 1].get_title() == f"student, 9 × 9 samples: CKA {intra:.3f}"
        assert axes[1, 1].get_title() == f"student, 4 × 4 classes: CKA {inter:.3f}"
        order = np.argsort(labels, kind="stable")
        expected = brute_force_gram(teacher.tolist())[np.ix_(order, order)]
        np.testing.assert_allclose(axes[0, 0].images[0].get_array(), expected, atol=1e-14)
        for row in axes:
            assert row[0].images[0].get_clim() == row[1].images[0].get_clim()
        assert [t.get_text() for t in axes[1, 0].get_yticklabels()] == list("wxyz")

    def test_pairs_refuse(self):
        with pytest.raises(ValueError, match=r"must both have shape \(samples, classes\), got \(3, 2\) and \(3, 4\)"):
            plot_gram_pairs(np.ones((3, 2)), np.ones((3, 4)))
        with pytest.raises(ValueError, match="`axes` must hold four"):
            plot_gram_pairs(np.eye(3), np.eye(3), axes=[plt.subplots()[1]])
        with pytest.raises(ValueError, match=r"`class_names` must hold 3 names, got \(2,\)"):
            plot_gram_pairs(np.eye(3), np.eye(3), class_names=["a", "b"])
