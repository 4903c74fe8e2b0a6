"""What a long job came to, as the session's next event. Pure.

A trainer that died, and a disk without room, are no verdict on the task: it is tried again after a wait. What cannot be
done on this device ends the lease.
"""

from collections.abc import Callable

from edge_runtime import session
from edge_runtime.jobs import (
    Died,
    Evaluate,
    Evaluated,
    JobResult,
    LongJob,
    NoRoom,
    Personalize,
    Personalized,
    Queued,
    Refused,
    Stopped,
    WasForgotten,
)
from edge_runtime.ports import Forgotten
from edge_runtime.turn_report import Notes
from wire_contract.messages import EvaluationReport, lease_id


def event_of(
    job: LongJob, result: JobResult, notes: Notes, *, device: str, now: float, draw: Callable[[], float]
) -> session.Event | None:
    """Return the event, and write into `notes` what the turn's report says. Raises `Forgotten`."""
    notes.training_steps += getattr(result, "steps", 0)
    if isinstance(job, Personalize):
        _personal(result, notes)
        return None
    match result:
        case Queued(update_id=update_id, finished_at=finished_at):
            # The trainer's transaction holds this state already, whoever was killed since.
            notes.update_queued = update_id
            return session.UpdateQueued(finished_at, update_id)
        case Evaluated() if isinstance(job, Evaluate):
            return session.ReportMade(now, _report(job, result, device, now))
        case Stopped():
            notes.interrupted = True
            return session.Interrupted(now, "a condition fell between two steps")
        case WasForgotten():
            raise Forgotten("the home was told to forget while the trainer worked")
        case NoRoom(reason=reason):
            notes.refused.append("storage_full")
            return session.NotKept(now, draw(), reason)
        case Died(reason=reason):
            notes.refused.append("trainer_died")
            return session.NotKept(now, draw(), reason)
        case Refused(reason=reason):
            notes.refused.append("plan_refused")
            return session.CannotTrain(now, draw(), reason)
    notes.refused.append("wrong_answer")
    return session.NotKept(now, draw(), f"the trainer answered {type(result).__name__}")


def _personal(result: JobResult, notes: Notes) -> None:
    match result:
        case Stopped():
            notes.interrupted = True
        case WasForgotten():
            raise Forgotten("the home was told to forget while the trainer worked")
        case Personalized(reason=reason) | Refused(reason=reason):
            notes.personal = reason
        case NoRoom():
            notes.refused.append("storage_full")
        case _:
            notes.refused.append("trainer_died")


def _report(job: Evaluate, result: Evaluated, device: str, now: float) -> EvaluationReport:
    offer = job.offer
    return EvaluationReport(
        device=device,
        task=offer.task,
        lease=offer.lease,
        report_id=lease_id(device, offer.task, offer.lease),
        version=offer.version,
        words=result.words,
        hits1=result.hits1,
        hits3=result.hits3,
        sent_at=int(now),
    )
