"""The part of `records.Records` that keeps evaluations: what was asked, the sums, and which reports are in them."""

from dataclasses import asdict

import sqlalchemy as sa

from cloud_aggregator.adapters import schema as t
from cloud_aggregator.adapters.sql_updates import SqlUpdates
from cloud_aggregator.records import EvaluationRecord, ReportRecord


class SqlEvaluations(SqlUpdates):
    """Operations on evaluations in one transaction."""

    def count_taken(self, task: str) -> int:
        chosen = (t.leases.c.task == task) & t.leases.c.state.in_(("live", "answered"))
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(t.leases).where(chosen)) or 0)

    def put_evaluation(self, evaluation: EvaluationRecord) -> None:
        self._put(t.evaluations, asdict(evaluation), ["task"])

    def evaluation(self, task: str) -> EvaluationRecord | None:
        row = self._connection.execute(sa.select(t.evaluations).where(t.evaluations.c.task == task)).one_or_none()
        return None if row is None else EvaluationRecord(**row._mapping)

    def evaluations(self, population: str | None) -> list[EvaluationRecord]:
        column = t.evaluations.c
        query = sa.select(t.evaluations).order_by(column.asked_at.desc(), column.task)
        if population is not None:
            query = query.where(column.population == population)
        return [EvaluationRecord(**row._mapping) for row in self._connection.execute(query)]

    def open_evaluations(self, population: str, now: int) -> list[EvaluationRecord]:
        column = t.evaluations.c
        chosen = (column.population == population) & (column.deadline > now)
        query = sa.select(t.evaluations).where(chosen).order_by(column.asked_at.desc(), column.task)
        return [EvaluationRecord(**row._mapping) for row in self._connection.execute(query)]

    def add_report(self, report: ReportRecord) -> None:
        self._connection.execute(sa.insert(t.evaluation_reports).values(asdict(report)))

    def report(self, task: str, device: str, lease: str) -> ReportRecord | None:
        column = t.evaluation_reports.c
        chosen = (column.task == task) & (column.device == device) & (column.lease == lease)
        row = self._connection.execute(sa.select(t.evaluation_reports).where(chosen)).one_or_none()
        return None if row is None else ReportRecord(**row._mapping)

    def drop_old_reports(self, counted_before: int) -> int:
        old = sa.delete(t.evaluation_reports).where(t.evaluation_reports.c.at < counted_before)
        return self._connection.execute(old).rowcount
