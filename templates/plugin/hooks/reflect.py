"""reflect $name: a better version of every sample, beside the sample itself."""

from __future__ import annotations

from collections.abc import Iterator

from siftune import Fate, Method, Sample, Samples, hookimpl


class $kind(Method):
    """The same response without blanks at the ends of its lines."""

    @hookimpl
    def reflect(self, samples: Samples) -> Iterator[Sample | Fate]:
        for position, sample in enumerate(samples):
            if not sample.response:
                yield Fate(position, left_out="no response")
                continue
            # one that comes out as it went in counts as already good, and makes no row
            yield sample.rewrite(response="\n".join(line.rstrip() for line in sample.response.splitlines()))
