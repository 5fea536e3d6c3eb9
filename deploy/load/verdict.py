"""What a soak comes to: three things that must be nil, and the work that has to have been done for that to mean anything."""

import statistics

NEEDED = ("answers", "answers OK", "answers CANCELLED", "scores", "imports", "searches", "deletes", "killed")


class Verdict:
    def __init__(self, memory, warmup_seconds, growth_mb_max, gauges, wrong, counts):
        """memory: [(seconds since the beginning, MB)], in order. gauges: {name: value at the end}. wrong: lines. counts: {what: how often}."""
        self.after_warmup = [mb for seconds, mb in memory if seconds >= warmup_seconds]
        self.growth_mb_max, self.gauges, self.wrong, self.counts = growth_mb_max, gauges, wrong, counts

    def growth_mb(self):
        """The median of the last fifth after the warm-up less that of the first. Medians: what a single request holds comes and goes."""
        part = len(self.after_warmup) // 5
        if part == 0:
            return None
        return statistics.median(self.after_warmup[-part:]) - statistics.median(self.after_warmup[:part])

    def held(self):
        return {name: value for name, value in self.gauges.items() if value != 0}

    def missing(self):
        return [name for name in NEEDED if not self.counts.get(name)]

    def failures(self):
        growth = self.growth_mb()
        found = []
        if growth is None:
            found.append("too short to tell whether memory grows")
        elif growth > self.growth_mb_max:
            found.append(f"memory grew by {growth:.1f} MB after the warm-up")
        found += [f"{name} is {value:g} and nobody asks any more" for name, value in self.held().items()]
        found += self.wrong
        found += [f"there were no {name}, so the rest says little" for name in self.missing()]
        return found

    def passes(self):
        return not self.failures()

    def figures(self):
        return {"passes": self.passes(), "memory_growth_mb": self.growth_mb(), "memory_growth_mb_max": self.growth_mb_max,
                "memory_mb_last": self.after_warmup[-1] if self.after_warmup else None, "gauges": self.gauges, "wrong": self.wrong,
                "counts": self.counts, "failures": self.failures()}

    def text(self):
        growth = self.growth_mb()
        lines = ["", "work:            " + ", ".join(f"{self.counts[key]} {key}" for key in sorted(self.counts)),
                 f"memory growth:   {growth:+.1f} MB to {self.after_warmup[-1]:.1f} MB (up to {self.growth_mb_max:g} comes and goes)"
                 if growth is not None else "memory growth:   not known",
                 "still held:      " + (", ".join(f"{name} {value:g}" for name, value in self.held().items()) or "nothing"),
                 f"wrong statuses:  {len(self.wrong)}"]
        failures = self.failures()
        lines += [f"  {failure}" for failure in failures[:20]]
        lines.append("verdict:         " + ("PASS" if not failures else f"FAIL ({len(failures)})"))
        return "\n".join(lines)
