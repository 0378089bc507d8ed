"""Frechet distance between two sets of feature vectors, from their means and covariances.

Exact, in float64 on the host (NumPy): the distance of Dowson & Landau, "The Frechet distance
between multivariate normal distributions", J. Multivariate Analysis 12 (1982), which Heusel et
al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, apply to Inception features as
FID.
The number means nothing without the name of the features and the number of samples.
"""

import dataclasses

import numpy as np


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """Squared Frechet distance between two Gaussians.

    `|mean1 - mean2|^2 + tr(cov1) + tr(cov2) - 2 tr((cov1^1/2 cov2 cov1^1/2)^1/2)`. The last trace
    is the sum of the singular values of `cov2^1/2 cov1^1/2`, so no root of a rounding error is
    taken and rank-deficient covariances are safe.

    Args:
      mean1, mean2: (F,) means.
      cov1, cov2: (F, F) covariances, symmetric and positive semi-definite.

    Returns:
      The distance, at least 0, in squared units of the features.

    Raises:
      ValueError: shapes that don't match, values that aren't finite, or a matrix that isn't a
        covariance.

    >>> import numpy as np
    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
    4.0
    """
    mean1, root1, trace1 = _gaussian(mean1, cov1, "1")
    mean2, root2, trace2 = _gaussian(mean2, cov2, "2")
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"the two sets need the same features, got {mean1.size} and {mean2.size} dimensions"
        )
    cross = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
    distance = np.sum((mean1 - mean2) ** 2) + trace1 + trace2 - 2 * cross
    # Equal distributions may come out below zero by rounding; a distance doesn't.
    return max(float(distance), 0.0)


def _gaussian(mean, cov, which):
    """Checked mean, a factor R with R R^T = cov (columns of zero variance dropped), and trace."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
        raise ValueError(
            f"mean{which} is (F,) and cov{which} (F, F), got {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"mean{which} and cov{which} must be finite")
    # 1e-6 admits covariances that were accumulated or stored in float32.
    if np.abs(cov - cov.T).max(initial=0.0) > 1e-6 * np.abs(cov).max(initial=0.0):
        raise ValueError(f"cov{which} isn't symmetric")
    variances, axes = np.linalg.eigh((cov + cov.T) / 2)
    largest = np.abs(variances).max(initial=0.0)
    if variances.min(initial=0.0) < -1e-6 * largest:
        raise ValueError(
            f"cov{which} has a negative variance ({variances[0]:.3g}); it isn't a covariance"
        )
    kept = variances > variances.size * np.finfo(np.float64).eps * largest
    return mean, axes[:, kept] * np.sqrt(variances[kept]), float(np.trace(cov))


@dataclasses.dataclass
class FeatureStatistics:
    """Running mean and covariance of feature vectors, in float64, mergeable across hosts.

    Attributes:
      count: number of vectors seen.
      mean: (F,) their mean.
      scatter: (F, F) their sum of squared deviations from the mean.

    Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.

    >>> import numpy as np
    >>> statistics = FeatureStatistics.empty(2)
    >>> statistics.update(np.array([[0.0, 0.0], [2.0, 4.0]]))
    >>> statistics.mean, statistics.covariance().tolist()
    (array([1., 2.]), [[2.0, 4.0], [4.0, 8.0]])
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, num_features: int) -> "FeatureStatistics":
        """Statistics of no vectors of `num_features` components."""
        return cls(0, np.zeros(num_features), np.zeros((num_features, num_features)))

    def update(self, features) -> None:
        """Add a batch of vectors, (B, F), in place."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.mean.size:
            raise ValueError(f"expected features (batch, {self.mean.size}), got {features.shape}")
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        self._add(len(features), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of both sets of vectors together; neither argument changes."""
        if other.mean.size != self.mean.size:
            raise ValueError(
                f"can't merge statistics of {self.mean.size} and {other.mean.size} features"
            )
        both = FeatureStatistics(self.count, self.mean.copy(), self.scatter.copy())
        both._add(other.count, other.mean, other.scatter)
        return both

    def _add(self, count, mean, scatter):
        total = self.count + count
        if not total:
            return
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.scatter += scatter
        self.scatter += np.outer(delta, delta) * (self.count * count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Unbiased covariance (F, F); needs at least two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_from_features(features1, features2) -> float:
    """Squared Frechet distance between two sets of feature vectors, (N, F) and (M, F).

    Two samples of one distribution are not at zero but, where all features vary alike, at about
    F / 2N of their total variance; so compare only numbers of equal N, with N well above F.
    Raises as `frechet_distance` does, and for fewer than two vectors.

    >>> import numpy as np
    >>> a = np.random.default_rng(0).normal(size=(500, 3))
    >>> round(frechet_from_features(a, a + [3, 0, 0]), 6)
    9.0
    """
    both = []
    for features in (features1, features2):
        features = np.asarray(features)
        if features.ndim != 2:
            raise ValueError(f"features are (samples, features), got shape {features.shape}")
        statistics = FeatureStatistics.empty(features.shape[1])
        statistics.update(features)
        both.append(statistics)
    one, two = both
    return frechet_distance(one.mean, one.covariance(), two.mean, two.covariance())
