"""Learns the ranking from what shoppers did: LambdaMART with inverse propensity, replayed on logged queries before it counts.

Reads   feedback (impressions, clicks, purchases)
Writes  models/ranker/<digest>/ (ranker.txt, LightGBM's text format; report.json), models/ranker/current: part of the next release
Engine  LightGBM, one process

    python -m jobs.train_ranker --conf conf/local.yaml

Too few clicks, or clicks that teach nothing, change nothing. A model that does not earn more in the replay than the order that
was shown is refused (exit code 3); the one before stays. `ranking.learned: true` uses it.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jobs.clicks.lambdamart import train_ranker
from jobs.clicks.propensity import propensities
from jobs.clicks.replay import Replay, replay
from jobs.clicks.sessions import Sessions, sessions_of
from jobs.config import Config, JobError, run_job
from jobs.release_models import save_model
from jobs.runs import configure_logging, pairs
from jobs.tables import Tables, read_table, table_version
from serve.ranking.ranker import RANKER_FILE, Ranker
from serve.ranking.records import FEEDBACK_TABLE

log = logging.getLogger("jobs.train_ranker")

GATE_EXIT_CODE = 3


@dataclass(frozen=True)
class RankerResult:
    """What was learned; `digest` is empty where nothing was."""

    sessions: int
    clicks: int
    replay_gain: float | None  # value of the new order against the shown one, per session, as a share
    digest: str


def run(config: Config) -> RankerResult:
    """Trains, replays, writes. Raises JobError where the replay refuses."""
    ranker_config, tables = config.train_ranker, Tables(config.store.tables)
    version = table_version(tables, FEEDBACK_TABLE)
    if version is None:
        log.info("no feedback yet: nothing is learned")
        return RankerResult(0, 0, None, "")
    feedback = read_table(tables, FEEDBACK_TABLE, version=version)
    sessions = sessions_of(feedback, ranker_config.purchase_gain, ranker_config.max_clicks_per_client)
    clicks_L = sessions.clicked_SL.sum(axis=0)
    num_clicks = int(clicks_L.sum())
    why = reason_against(clicks_L, ranker_config.min_clicks)
    if why is not None:
        log.info("nothing is learned: %s", why)
        return RankerResult(len(sessions), num_clicks, None, "")
    is_test = np.random.default_rng(ranker_config.seed).random(len(sessions)) < ranker_config.test_frac
    learning, kept = sessions.pick(~is_test), sessions.pick(is_test)
    curve_L = propensities(sessions, ranker_config.propensity_exponent, ranker_config.min_propensity)
    log.info("propensities=%s shuffled_sessions=%d", np.round(curve_L, 3).tolist(), int(sessions.shuffled_S.sum()))
    ranker = train_ranker(learning, curve_L, ranker_config)
    replayed = replay(kept, scores_of(ranker, kept), curve_L, ranker_config.seed)
    log.info("replay %s", pairs(asdict(replayed)))
    if not replayed.is_better:
        raise JobError(
            f"the learned ranking earns {replayed.new:.3f} a session in the replay, the shown order {replayed.shown:.3f} "
            f"(difference {replayed.gain_low:.3f} to {replayed.gain_high:.3f}): not switched on, what there was stays",
            GATE_EXIT_CODE,
        )
    report = {"feedback_version": version, "sessions": len(sessions), "clicks": num_clicks, "replay": asdict(replayed)}
    digest = save_model(config.store, "ranker", lambda folder: write(folder, ranker, report))
    result = RankerResult(len(sessions), num_clicks, round(gain_of(replayed), 4), digest)
    log.info("train_ranker %s", pairs(asdict(result)))
    return result


def reason_against(clicks_L: np.ndarray, min_clicks: int) -> str | None:
    """Why these clicks by position teach nothing; None = they do."""
    if clicks_L.sum() < min_clicks:
        return f"{int(clicks_L.sum())} clicks, train_ranker.min_clicks is {min_clicks}"
    if not clicks_L[1:].any():
        return "every click is on position 1, which says nothing about order; ranking.shuffled_frac shows answers in another one"
    return None


def scores_of(ranker: Ranker, sessions: Sessions) -> np.ndarray:
    """(S, L) learned scores."""
    flat = sessions.features_SLF.reshape(-1, sessions.features_SLF.shape[2])
    return ranker.scores(flat).reshape(sessions.shown_SL.shape)


def gain_of(replayed: Replay) -> float:
    """How much more the new order earns, as a share of what the shown one did."""
    return replayed.new / replayed.shown - 1 if replayed.shown else 0.0


def write(folder: Path, ranker: Ranker, report: dict[str, object]) -> None:
    """Model and report."""
    (folder / RANKER_FILE).write_text(ranker.booster.model_to_string())
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
