"""The meaning of a network's logits: classes that exclude each other (softmax), or labels that may overlap (sigmoid).

`outputs` of a bundle's `inference.yaml` says which of the two. Everything that differs between them in tensors is here.
"""

import torch
import torch.nn.functional as F  # noqa: N812


class ExclusiveOutputs:
    """Classes that share the voxels out: a softmax over the channels, of which the first is the background."""

    name = "exclusive"

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (C, *spatial): the probability of each class."""
        return torch.softmax(logits, 0)

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (*spatial): the number of the most probable class."""
        return logits.argmax(0)

    def masks(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (C - 1, *spatial), boolean: the voxels of each structure."""
        labels = self.labels(logits)
        return torch.stack([labels == number for number in range(1, len(logits))])

    def truth(self, label: torch.Tensor, channels: int) -> torch.Tensor:
        """A label (1, *spatial) of class numbers as the likelihood needs it: as it is."""
        return label

    def negative_log_likelihood(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Mean over voxels, in nats, of the truth (1, *spatial) under the logits (C, *spatial)."""
        return F.cross_entropy(logits[None], truth.long())

    def confidence(self, logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (*spatial), twice: the probability of the most probable class, and whether this class is the true one."""
        confidence, label = torch.softmax(logits, 0).max(0)
        return confidence, label == truth[0]

    def log_odds(self, logits: torch.Tensor, structure: int) -> torch.Tensor:
        """Shape (B, V): of a structure, counted from 0, against all other classes together, from logits (B, C, V).

        A number that is added to all logits does not change it.
        """
        channel = structure + 1
        others = [n for n in range(logits.shape[1]) if n != channel]
        # log(p / (1 - p)) with p = exp(z_c) / sum exp(z): the sum over all classes cancels. From rounded probabilities
        # it would be infinite where p is 1.
        return logits[:, channel] - torch.logsumexp(logits[:, others], 1)


class OverlappingOutputs:
    """Labels that may share voxels: a sigmoid for each channel. A probability of 0.5 or more is a yes, as in `AsDiscreted`."""

    name = "overlapping"

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (C, *spatial): the probability of each label."""
        return torch.sigmoid(logits)

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (C, *spatial), boolean: the voxels of each label."""
        # sigmoid(0) is 0.5, the threshold
        return logits >= 0

    masks = labels

    def truth(self, label: torch.Tensor, channels: int) -> torch.Tensor:
        """A label (C, *spatial) of 0 and 1 as it is; class numbers (1, *spatial) as one mask for each of several channels."""
        if len(label) == 1 and channels > 1:
            return torch.cat([label == number for number in range(1, channels + 1)])
        return label

    def negative_log_likelihood(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Mean over voxels and labels, in nats, of the truth (C, *spatial) under the logits, of the same shape."""
        # From the logits: the logarithm of a rounded sigmoid would be infinite for a sure answer
        return F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits))

    def confidence(self, logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (C, *spatial), twice: the probability of the more probable answer, and whether this answer is the true one."""
        p = torch.sigmoid(logits)
        return torch.maximum(p, 1 - p), (p >= 0.5) == (truth.expand_as(p) > 0.5)

    def log_odds(self, logits: torch.Tensor, structure: int) -> torch.Tensor:
        """Shape (B, V): of a label, counted from 0, from logits (B, C, V)."""
        return logits[:, structure]


Outputs = ExclusiveOutputs | OverlappingOutputs


def outputs_of(exclusive: bool) -> Outputs:
    """The meaning of the logits: exclusive classes if `exclusive` is true, else overlapping labels."""
    return ExclusiveOutputs() if exclusive else OverlappingOutputs()
