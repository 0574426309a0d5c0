"""The operator that plans the ingest of a whole archive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.arguments import as_seconds, check_bool, check_choice, check_credits, check_parallel
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughySourceError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ingest import manifest as manifests
from airflow_provider_roughy.ingest.discover import MEDIA, Discovered, list_of
from airflow_provider_roughy.ingest.manifest import DEFERRED, DONE, PLANNED, REJECTED, Header, ManifestWriter, Planned
from airflow_provider_roughy.ingest.planning import EarlierPlan, Planner
from airflow_provider_roughy.ledger import ClaimOwner, Ledger
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.operators.ingest_arguments import (
    check_shard,
    find_recordings,
    ledger_outside,
    max_credits_of,
    source_conn_id_of,
)
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.transfer.progress import bytes_in_words
from airflow_provider_roughy.transfer.storage import as_text, asset_uri, local_path, without_secrets
from airflow_provider_roughy.transfer.target import find_target

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.ingest.trees import SourceLocation

#: Sources and patterns that a header names.
_MAX_NAMED = 20
#: The most lines of the price list in the log, and of files that are not planned.
_MAX_LINES, _MAX_LEFT_OUT = 100, 20


class RoughyPlanIngestOperator(InterruptibleOperator):
    """Lists the new recordings of an archive once, and writes a manifest that several tasks upload.

    It creates nothing at Roughy. ``RoughyIngestOperator(source=<manifest>)`` uploads what is planned, as one task or as
    several that share it::

        plan = RoughyPlanIngestOperator(
            task_id="plan",
            source="s3://archive/recordings/",
            recursive=True,
            ledger="s3://archive/roughy-ledger",
            manifest="s3://archive/plans/{{ ts_nodash }}.jsonl",
            shards=8,
        )
        ingest = RoughyIngestOperator.partial(task_id="ingest", source=plan.output).expand(shard=list(range(8)))

    The result is the URI of the manifest. The XCom ``counts`` says how many recordings are planned, deferred and
    rejected, and their bytes and credits.

    The manifest is a header with the totals, and then a line of JSON for each recording, the oldest first. It has no
    line for a recording that the ledger has, so a new plan over the same ledger contains only what is missing. A file
    that is changed after the plan is not uploaded: a new plan contains the changed file.

    ``max_credits`` is spent here: the oldest recordings that fit are planned, the others are ``deferred`` in the
    manifest, with the reason. All shards and all their tries together cannot exceed it. A plan that is repeated in the
    same run, such as a retry or a cleared task, keeps what it has planned before, and counts it.

    :param source: The archive: a folder, a prefix, a glob, a file or a list of them. (templated)
    :param pattern: Which files of a folder are planned, by their names; by default audio and video. (templated)
    :param recursive: Whether to plan subfolders, too.
    :param source_conn_id: The Airflow connection of the source's storage. (templated)
    :param ledger: The folder of the ledger: an absolute path or a URI. (templated)
    :param ledger_conn_id: The Airflow connection of the ledger's storage. (templated)
    :param manifest: Where the manifest is written: a path or a URI that ends with ``.jsonl``, which all workers reach.
        It appears completely or not at all, and replaces an earlier manifest. (templated)
    :param manifest_conn_id: The Airflow connection of its storage. (templated)
    :param shards: How many tasks are to share it.
    :param identity: See :class:`RoughyIngestOperator`. With ``"content"``, the plan reads each new file completely.
    :param project_id: The project of the new assets; by default the one in the connection's extra. (templated)
    :param language: The language spoken, two letters of ISO 639-1; by default Roughy detects it. (templated)
    :param parallel: How many files are read at once, 1 to 64, for their length or content.
    :param max_credits: The most credits that the run may cost, and never more than the balance. (templated)
    :param credits_if_unknown: The credits to count for a recording of unknown length; by default the most that its size
        can hold.
    :param prices: Whether to read the length of each recording and to write what it costs, also without
        ``max_credits``. It needs the extra ``probe``.
    :param dry_run: Whether to write a price list only: a manifest with prices, of which no task uploads anything. The
        log shows it as a table.
    :param stable_for: Seconds, or a ``timedelta``: files that were changed more recently are deferred.
    :param on_empty: What to do if there is no file at all: ``"return"`` an empty manifest, ``"skip"`` or ``"fail"``.
    :param roughy_conn_id: The Airflow connection. (templated)
    :raises RoughyUnusableSourceError: If the source is missing or unreadable.
    :raises RoughyUnusableLedgerError: If the ledger cannot be used.
    :raises RoughyTargetError: If the manifest cannot be written.
    :raises RoughyNotFoundError: If there is no such project.
    """

    template_fields: Sequence[str] = (
        "source",
        "pattern",
        "source_conn_id",
        "ledger",
        "ledger_conn_id",
        "manifest",
        "manifest_conn_id",
        "project_id",
        "language",
        "max_credits",
        "roughy_conn_id",
    )
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        source: SourceLocation | Sequence[SourceLocation],
        ledger: str | os.PathLike[str],
        manifest: str | os.PathLike[str],
        pattern: str | Sequence[str] = MEDIA,
        recursive: bool = False,
        source_conn_id: str | None = None,
        ledger_conn_id: str | None = None,
        manifest_conn_id: str | None = None,
        shards: int = 8,
        identity: Literal["location", "content"] = "location",
        project_id: str | None = None,
        language: str | None = None,
        parallel: int = 4,
        max_credits: int | str | None = None,
        credits_if_unknown: int | None = None,
        prices: bool = False,
        dry_run: bool = False,
        stable_for: float | timedelta = 0,
        on_empty: Literal["return", "skip", "fail"] = "return",
        roughy_conn_id: str = RoughyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("on_empty", on_empty, ("return", "skip", "fail"))
        check_choice("identity", identity, ("location", "content"))
        check_parallel(parallel)
        check_credits("credits_if_unknown", credits_if_unknown)
        check_shard(None, shards)
        self.source = source
        self.pattern = pattern
        self.recursive = check_bool("recursive", recursive)
        self.source_conn_id = source_conn_id
        self.ledger = ledger
        self.ledger_conn_id = ledger_conn_id
        self.manifest = manifest
        self.manifest_conn_id = manifest_conn_id
        self.shards = shards
        self.identity = identity
        self.project_id = project_id
        self.language = language
        self.parallel = parallel
        self.max_credits = max_credits
        self.credits_if_unknown = credits_if_unknown
        self.prices = check_bool("prices", prices)
        self._dry_run = check_bool("dry_run", dry_run)  # BaseOperator has a method of that name.
        self.stable_for = as_seconds("stable_for", stable_for) if stable_for else 0.0
        self.on_empty = on_empty
        self.roughy_conn_id = roughy_conn_id

    def execute(self, context: Context) -> str:
        """Write the manifest.

        :returns: Its URI.
        """
        max_credits = max_credits_of(self.max_credits, is_priced=self.prices or self._dry_run)
        priced = self.prices or self._dry_run or max_credits is not None
        uri = self._uri()
        source_conn_id_of(self.source, self.source_conn_id)
        ledger = ledger_outside(self.ledger, self.ledger_conn_id, self.source)
        hook = RoughyHook(self.roughy_conn_id)
        with self._interrupt, hook, ManifestWriter() as writer:
            find_target(uri, name="plan.jsonl")
            found = find_recordings(
                self.source,
                pattern=self.pattern,
                recursive=self.recursive,
                conn_id=self.source_conn_id,
                ledger=ledger,
                on_empty=self.on_empty,
            )
            ledger.check()
            project_id = hook.get_project_id(self.project_id)
            # A shard would notice a missing project only when it creates its first asset.
            hook.get_project(project_id)
            ti = context["ti"]
            planner = Planner(
                hook,
                owner=ClaimOwner.of(ti),
                ledger=ledger,
                dag_id=ti.dag_id,
                run_id=ti.run_id,
                project_id=project_id,
                language=language_code(self.language) if self.language else None,
                by_content=self.identity == "content",
                parallel=self.parallel,
                log=self.log,
            )
            planner.plan(
                found.files,
                writer,
                earlier=self._earlier(uri, ti.dag_id, ti.run_id),
                priced=priced,
                max_credits=max_credits,
                credits_if_unknown=self.credits_if_unknown,
                stable_for=self.stable_for,
                dry_run=self._dry_run,
            )
            header = self._header(planner, ledger, ti, max_credits, priced=priced)
            writer.write(header, uri)
            if not self._dry_run:
                planner.remember_rejected(writer)
            self._log_plan(header, found, planner, writer, uri)
        lineage.report(hook, read=map(asset_uri, header.source[:_MAX_NAMED]), written=[asset_uri(uri)])
        ti.xcom_push("counts", header.counts())
        return uri

    def _uri(self) -> str:
        """Return the location of the manifest, with the connection of its storage in the URI, as Airflow writes it."""
        text = str(self.manifest).strip()
        if not manifests.is_manifest(text):
            raise RoughyConfigurationError(
                f"`manifest` must be a path or a URI that ends with .jsonl, not {as_text(without_secrets(text))!r}; if "
                "it is a template, it rendered to that"
            )
        path = local_path(text)
        if path is not None:
            if not os.path.isabs(path):
                raise RoughyConfigurationError(
                    f"`manifest` is a relative path: {as_text(text)!r}, which is another file in each worker's working "
                    "directory. Give an absolute path"
                )
            return text
        conn_id = self.manifest_conn_id or getattr(self.manifest, "conn_id", None)
        scheme, _, rest = text.partition("://")
        has_conn_id = re.match(r"[^/@]*@", rest) is not None
        return f"{scheme}://{conn_id}@{rest}" if conn_id and not has_conn_id else text

    def _earlier(self, uri: str, dag_id: str, run_id: str) -> EarlierPlan:
        """Return what an earlier manifest of this run has planned."""
        if not find_target(uri, name="plan.jsonl").exists():
            return EarlierPlan()
        try:
            with manifests.reading(uri) as manifest:
                header = manifest.header
                if (header.dag_id, header.run_id) != (dag_id, run_id) or header.dry_run:
                    self.log.info(
                        "Replacing the manifest of %s, run %s: %s", header.dag_id, header.run_id, manifest.uri
                    )
                    return EarlierPlan()
                if self._dry_run:
                    raise RoughyConfigurationError(
                        f"`manifest` names the plan of this run, {manifest.uri}, which says what the run may still "
                        "spend: a price list does not replace it. Give it another name"
                    )
                return EarlierPlan.of(manifest, lambda: _lines_of(uri))
        except RoughyUnusableSourceError as err:
            raise RoughyConfigurationError(
                f"`manifest` names an object that exists and is not a manifest that can be read, so that it is not "
                f"replaced. Remove it, or give another name: {err}"
            ) from None
        except RoughySourceError as err:
            raise RoughySourceError(f"An earlier manifest of this run cannot be read: {err}") from err

    def _header(self, planner: Planner, ledger: Ledger, ti: Any, max_credits: int | None, *, priced: bool) -> Header:
        sources = [as_text(without_secrets(str(source))) for source in list_of(self.source)]
        patterns = [self.pattern] if isinstance(self.pattern, str) else list(self.pattern)
        return Header(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            source=sources[:_MAX_NAMED] + (["…"] if len(sources) > _MAX_NAMED else []),
            pattern=patterns,
            recursive=self.recursive,
            ledger=ledger.uri,
            project_id=planner.project_id,
            language=planner.language,
            source_conn_id=source_conn_id_of(self.source, self.source_conn_id),
            ledger_conn_id=ledger.conn_id,
            ledger_id=ledger.id(),
            by_content=planner.by_content,
            shards=self.shards,
            dry_run=self._dry_run,
            max_credits=max_credits,
            spent=planner.spent,
            balance=planner.balance,
            recordings=planner.lines[PLANNED],
            size_bytes=planner.size_bytes,
            credits=planner.credits if priced else None,
            done=planner.lines[DONE],
            deferred=planner.lines[DEFERRED],
            rejected=planner.lines[REJECTED],
            already_ingested={state: number for state, number in planner.known.items() if number},
        )

    def _log_plan(self, header: Header, found: Discovered, planner: Planner, writer: ManifestWriter, uri: str) -> None:
        name = as_text(without_secrets(uri))
        cost = "" if header.credits is None else f" for {counted(header.credits, 'credit')}"
        known = header.counts()["already_ingested"]
        self.log.info(
            "Planned %s, %s%s; %s deferred, %s rejected, %s already ingested. Manifest: %s",
            counted(header.recordings, "recording"),
            bytes_in_words(header.size_bytes),
            cost,
            f"{header.deferred:,}",
            f"{header.rejected:,}",
            f"{known:,}",
            name,
        )
        if header.balance is not None:
            self.log.info(
                "The balance is %s%s%s",
                f"{header.balance:,}",
                "" if header.max_credits is None else f", `max_credits` is {header.max_credits:,}",
                f"; earlier plans of this run count for {header.spent:,}" if header.spent else "",
            )
        if planner.unknown:
            self.log.warning(
                "%s of unknown length; set `credits_if_unknown` to change what each counts for",
                counted(planner.unknown, "recording"),
            )
        if found.left_out:
            files = counted(found.left_out, "file")
            self.log.info("Skipped %s that `pattern` does not match: %s", files, found.listed_left_out)
        self._log_lines(writer, name)

    def _log_lines(self, writer: ManifestWriter, name: str) -> None:
        prices: list[str] = []
        left_out: list[str] = []
        for planned in writer.planned():
            if planned.status == PLANNED:
                if self._dry_run and len(prices) < _MAX_LINES:
                    length = "unknown" if planned.seconds is None else str(timedelta(seconds=round(planned.seconds)))
                    size = bytes_in_words(planned.size_bytes)
                    prices.append(f"{planned.credits or 0:>9,}  {length:>10}  {size:>11}  {planned.uri}")
            elif planned.status != DONE and len(left_out) < _MAX_LEFT_OUT:
                left_out.append(f"{planned.status:<10}{planned.uri}  {planned.reason}")
        if prices:
            title = f"{'credits':>9}  {'length':>10}  {'size':>11}  recording"
            self.log.info(
                "Price list, at most %s lines; all of it is in %s\n%s", _MAX_LINES, name, "\n".join([title, *prices])
            )
        if left_out:
            self.log.warning(
                "Not planned, at most %s lines; all are in %s\n%s", _MAX_LEFT_OUT, name, "\n".join(left_out)
            )


def _lines_of(uri: str) -> Iterator[Planned]:
    with manifests.reading(uri) as manifest:
        yield from manifest.lines()
