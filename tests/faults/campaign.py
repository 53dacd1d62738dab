"""kill -9 at random instants, over every kind of process a study has, until the counts are reached.

A driver is struck at any instant of its life and started again; the other processes are struck while the driver lives. Every
study is run to its end, and its final table must be an undisturbed study's: no trial lost, none twice, no value changed, and
no process, port or temporary file left. Run by hand: python tests/faults/campaign.py [SEED]
"""

import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import rig as rigs
from rig import Rig, end, own_processes, strike

QUOTA = {"driver": 60, "worker": 25, "fork server": 10, "engine parent": 35, "engine child": 35, "load client": 35}
"""200 instants in all."""
_STARTING_S = 0.9
"""A driver's own start: most of it is imports, which are struck seldom."""


class Campaign:
    def __init__(self, folder, seed, quota=None, lanes=2):
        self.folder, self.seed, self.lanes = folder, seed, lanes
        self.quota = Counter(QUOTA if quota is None else quota)
        self.tried, self.survived, self.failures = Counter(), Counter(), []
        self.studies = 0
        self._lock = threading.Lock()
        self.expected = {sampler: self._undisturbed(sampler) for sampler in ("tpe", "random")}

    def run(self):
        lanes = [threading.Thread(target=self._lane, args=(number,)) for number in range(self.lanes)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return self

    def report(self):
        rows = [f"{role:14} {self.tried[role]:4} tried {self.survived[role]:4} survived" for role in self.tried]
        return "\n".join(
            [*rows, f"{'all':14} {self.tried.total():4} tried {self.survived.total():4} survived, {self.studies} studies"]
        )

    def _undisturbed(self, sampler):
        rig = Rig(self.folder / f"undisturbed-{sampler}", sampler=sampler)
        assert rig.run() == 0, rig.log()
        assert rig.left() == [], rig.left()
        rig.close()
        return rig.table()

    def _lane(self, number):
        rng = random.Random(f"{self.seed}-{number}")
        while (role := self._next_role(rng)) is not None:
            with self._lock:
                self.studies += 1
                # The search may not learn from a crash that we caused, when its proposals are compared.
                sampler = "random" if role == "engine child" else "tpe"
                rig = Rig(self.folder / f"{self.studies:03d}", sampler=sampler)
            struck = Counter()
            try:
                self._disturb(rig, role, rng, struck)
                problems = self._problems(rig, sampler, struck)
            except Exception as error:
                problems = [repr(error)[:1000]]
            with self._lock:
                self.tried += struck
                if problems:
                    self.failures.append((rig.folder, dict(struck), problems))
                else:
                    self.survived += struck
            rig.close()

    def _take(self, role):
        """One more instant of a role, if one is still wanted."""
        with self._lock:
            wanted = self.quota[role] > 0
            self.quota[role] -= wanted
            return wanted

    def _give_back(self, role):
        with self._lock:
            self.quota[role] += 1

    def _next_role(self, rng):
        with self._lock:
            open_roles = [role for role, left in self.quota.items() if left > 0]
        return rng.choice(open_roles) if open_roles else None

    def _disturb(self, rig, role, rng, struck):
        if role == "driver":
            self._drivers(rig, rng, struck)
        else:
            self._others(rig, role, rng, struck)

    def _drivers(self, rig, rng, struck):
        while True:
            driver = rig.start()
            try:
                tired = self._let_pass(rig, driver)
                time.sleep(rng.uniform(0.0 if tired else _STARTING_S * rng.random(), 1.8))
                if driver.poll() is not None or not self._take("driver"):
                    driver.wait(60)
                    assert driver.returncode == 0, rig.log()
                    return
                driver.kill()
                driver.wait()
                struck["driver"] += 1
                self._consistent(rig)
            finally:
                end(driver)

    def _let_pass(self, rig, driver):
        """Three deaths in one trial make it a machine fault by design: let a trial that was struck twice end."""
        if not (rig.study / "ledger.jsonl").exists():
            return False
        tired = {job.number for job in rig.history().in_flight if job.attempt >= 2}
        while driver.poll() is None and not tired <= set(rig.history().records):
            time.sleep(0.02)
        return bool(tired)

    def _others(self, rig, role, rng, struck):
        driver = rig.start()
        # A killed child is a crash for good: some trials must be left to win.
        every = 2 if role == "engine child" else 1
        try:
            while driver.poll() is None and self._take(role):
                time.sleep(rng.uniform(0, 0.2))
                if strike(rig, {role}, rng, driver, every):
                    struck[role] += 1
                else:
                    self._give_back(role)
            driver.wait(60)
            assert driver.returncode == 0, rig.log()
        finally:
            end(driver)

    def _consistent(self, rig):
        """Right after a death: everything that can be read is part of the undisturbed table."""
        if (rig.study / "ledger.jsonl").exists():
            table = rig.table()
            assert all(self.expected[rig.sampler][number] == row for number, row in table.items()), table

    def _problems(self, rig, sampler, struck):
        expected, found = self.expected[sampler], rig.table()
        problems = rig.left()
        if list(found) != list(expected):
            problems.append(f"trials {list(found)}, expected {list(expected)}")
        for number in set(found) & set(expected):
            configuration, rows = found[number]
            if configuration != expected[number][0]:
                problems.append(f"trial {number} ran {configuration}, expected {expected[number][0]}")
            if rows is not None and rows != expected[number][1]:
                problems.append(f"trial {number} measured {rows}, expected {expected[number][1]}")
        failed = [record for record in rig.history().records.values() if not rigs.measured_of(record)]
        allowed = struck["engine child"]
        if len(failed) > allowed or any(record.outcome.kind not in ("crashed", "unhealthy", "incomplete") for record in failed):
            problems.append(f"failed: {[(record.number, record.outcome) for record in failed]}, expected at most {allowed}")
        return problems


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    with TemporaryDirectory(prefix="at-campaign-") as folder:
        before = time.monotonic()
        campaign = Campaign(Path(folder), seed).run()
        print(campaign.report())
        print(f"seed {seed}, {time.monotonic() - before:.0f} s")
        for where, struck, problems in campaign.failures:
            print(where, struck, *problems, (where / "driver.log").read_text()[-3000:], sep="\n  ")
        sys.exit(bool(campaign.failures))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()


__all__ = ["QUOTA", "Campaign", "own_processes"]
