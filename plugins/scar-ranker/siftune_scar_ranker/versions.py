"""`reflect referenced` and `reflect direct`: what a teacher makes of a human's answer, and what it answers itself."""

from __future__ import annotations

from collections.abc import Iterator

from siftune import Context, Fate, Sample, Samples, hookimpl
from siftune.asking import Asking


class Version(Asking):
    """One machine version of every answer, in the teacher's own words and layout: free text, for a schema would
    change the form that is wanted of it."""

    min_coverage = 0.8

    def read(self, sample: Sample, reply: str) -> str | None:
        # a thought that does not end holds no answer
        return None if "<think>" in reply else reply.strip() or None

    @hookimpl
    def reflect(self, samples: Samples, run: Context) -> Iterator[Sample | Fate]:
        here = set(samples.ids)
        asked = []
        for position, sample in enumerate(samples):
            reason = self.unfit(sample)
            if not reason and sample.parent in here:
                reason = "a rewrite of a sample that is asked itself"
            if reason:
                yield Fate(position, left_out=reason)
            else:
                asked.append(position)
        for position, found, error in self.asked(samples, asked, run):
            yield Fate(position, failed=error) if error else samples[position].rewrite(response=found)


class Referenced(Version):
    """The teacher says in its own form what the human answer says: machine style, human content.

    The `referenced` answers of https://arxiv.org/abs/2406.10882. Of a conversation, the last answer.
    """

    prompt = "referenced.md"


class Direct(Version):
    """The teacher answers the instruction without having seen the human answer: machine style, machine content.

    The `direct` answers of https://arxiv.org/abs/2406.10882. Of a conversation, the last answer.
    """

    prompt = "direct.md"
    shows_response = False
