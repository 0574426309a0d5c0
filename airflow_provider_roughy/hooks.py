"""The hook: a client of Roughy's API with the key of an Airflow connection."""

from __future__ import annotations

import asyncio
import warnings
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy import api
from airflow_provider_roughy.api import decode
from airflow_provider_roughy.compat import AirflowNotFoundException, BaseHook, aget_connection
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyConflictError,
    RoughyError,
    RoughyMissingConnectionError,
    RoughyNotFoundError,
    RoughyPaymentRequiredError,
)
from airflow_provider_roughy.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.lifecycle import ASSET, CUT, RENDER, Outcome, Verdict
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.observability import lineage, metrics
from airflow_provider_roughy.settings import Settings
from airflow_provider_roughy.transfer.download import Downloaded, download
from airflow_provider_roughy.transfer.resumable import DurableUpload, open_uploader
from airflow_provider_roughy.transfer.source import Source, find_source
from airflow_provider_roughy.transfer.storage import asset_uri
from airflow_provider_roughy.transfer.target import check_overwrite

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from typing import Self

    from airflow_provider_roughy.api import (
        Call,
        Page,
        RoughyAsset,
        RoughyCreditDay,
        RoughyCreditEntry,
        RoughyCut,
        RoughyExport,
        RoughyProject,
        RoughyRender,
        RoughyUser,
        RoughyWebhookEndpoint,
    )
    from airflow_provider_roughy.compat import Connection, ObjectStoragePath
    from airflow_provider_roughy.http.client import AsyncClient, Client
    from airflow_provider_roughy.ledger import Entry, Ledger
    from airflow_provider_roughy.transfer.resumable import StateStore
    from airflow_provider_roughy.transfer.target import Overwrite

#: The misspelled fields that were warned about, by connection.
_warned: set[tuple[str, str]] = set()

T = TypeVar("T")
R = TypeVar("R", bound=api.Resource)


class RoughyHook(BaseHook):
    """Calls Roughy's API with the key of an Airflow connection.

    The hook retries requests that are safe to repeat after a network fault, a 5xx or a 429, with exponential backoff,
    or after the time that ``Retry-After`` names. It raises other errors as subclasses of
    :class:`~airflow_provider_roughy.exceptions.RoughyError`.

    The connection holds the API key as its password. Its host is Roughy's base URL, by default
    ``https://api.roughy.ai``. Its extra may hold ``project_id`` (the default project), ``timeout`` (seconds),
    ``verify`` (path of a CA bundle, or false) and ``allow_http``; for webhooks, ``webhook_secret`` and
    ``webhook_asset``.

    The hook reports uploads, cuts, renders, exports and downloads to Airflow's lineage.

    Use it as a context manager to close its network connections early.

    :param roughy_conn_id: The Airflow connection.
    """

    conn_name_attr = "roughy_conn_id"
    default_conn_name = "roughy_default"
    conn_type = "roughy"
    hook_name = "Roughy"

    #: Lookups of connections under way, by event loop and connection.
    _lookups: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[Settings]]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, roughy_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.roughy_conn_id = roughy_conn_id
        self._settings: Settings | None = None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the connection form's behaviour, for Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the connection form's extra fields, for Airflow before 3.2."""
        from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
        from wtforms import BooleanField, PasswordField, StringField

        def field(entry: dict[str, Any]) -> Any:
            label, description, schema = entry["label"], entry["description"], entry["schema"]
            if "boolean" in schema["type"]:
                return BooleanField(label, description=description)
            if schema.get("format") == "password":
                return PasswordField(label, widget=BS3PasswordFieldWidget(), description=description)
            return StringField(label, widget=BS3TextFieldWidget(), description=description)

        return {name: field(entry) for name, entry in CONN_FIELDS.items()}

    # ---- The connection

    @property
    def settings(self) -> Settings:
        """The settings of the connection, which is read once.

        :raises RoughyMissingConnectionError: If Airflow finds no such connection, or cannot read it now.
        :raises RoughyConfigurationError: If the connection is unusable.
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.roughy_conn_id)
                extra = connection.extra_dejson
            except Exception as err:  # Secrets backends raise errors of their own.
                raise self._missing(err) from err
            self._settings = self._read(connection, extra)
        return self._settings

    @property
    def has_settings(self) -> bool:
        """Whether :attr:`settings` is read already."""
        return self._settings is not None

    async def aget_settings(self) -> Settings:
        """Return :attr:`settings` without blocking the event loop. Concurrent callers share one lookup.

        :raises RoughyMissingConnectionError: If Airflow finds no such connection, or cannot read it now.
        :raises RoughyConfigurationError: If the connection is unusable.
        """
        if self._settings is None:
            loop = asyncio.get_running_loop()
            lookups = self._lookups.setdefault(loop, {})
            lookup = lookups.get(self.roughy_conn_id)
            if lookup is None:
                lookup = lookups[self.roughy_conn_id] = loop.create_task(self._alook_up())
                lookup.add_done_callback(lambda _: lookups.pop(self.roughy_conn_id))
            # A caller that is cancelled must not cancel the lookup of the others.
            self._settings = await asyncio.shield(lookup)
        return self._settings

    async def _alook_up(self) -> Settings:
        try:
            connection, extra = await aget_connection(self.roughy_conn_id)
        except Exception as err:  # As in settings.
            raise self._missing(err) from err
        return self._read(connection, extra)

    def _missing(self, error: Exception) -> RoughyMissingConnectionError:
        if isinstance(error, AirflowNotFoundException):
            return RoughyMissingConnectionError(
                f"Airflow has no connection {self.roughy_conn_id!r}: create it, or check `roughy_conn_id`. A secrets "
                "backend that is down looks the same"
            )
        return RoughyMissingConnectionError(
            f"Connection {self.roughy_conn_id!r} cannot be read: {type(error).__name__}: {error}"
        )

    def _read(self, connection: Connection, extra: dict[str, Any]) -> Settings:
        try:
            settings = Settings.from_connection(
                host=connection.host,
                schema=connection.schema,
                port=connection.port,
                password=connection.password,
                extra=extra,
                conn_id=self.roughy_conn_id,
                conn_type=connection.conn_type,
            )
        except RoughyConfigurationError as err:
            raise RoughyConfigurationError(f"Connection {self.roughy_conn_id!r} is unusable: {err}") from None
        if settings.misspelled and (self.roughy_conn_id, settings.misspelled) not in _warned:
            # Once: a triggerer reads a connection for each of its waits.
            _warned.add((self.roughy_conn_id, settings.misspelled))
            self.log.warning("Ignored in the extra of connection %r: %s", self.roughy_conn_id, settings.misspelled)
        return settings

    @cached_property
    def client(self) -> Client:
        """The client that all calls of this hook share."""
        from airflow_provider_roughy.http.client import Client

        metrics.start()
        return Client(self.settings)

    def get_conn(self) -> Client:
        """Return :attr:`client`."""
        return self.client

    def twin(self) -> RoughyHook:
        """Return another hook of the same settings.

        Deprecated since 0.2: create a hook with ``roughy_conn_id`` instead.
        """
        instead = "RoughyHook.twin() will be removed: use RoughyHook(hook.roughy_conn_id)"
        warnings.warn(instead, DeprecationWarning, stacklevel=2)
        hook = RoughyHook(self.roughy_conn_id)
        hook._settings = self.settings
        return hook

    def close(self) -> None:
        """Close the network connections; the next call opens new ones."""
        client: Client | None = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def test_connection(self) -> tuple[bool, str]:
        """Test the key and the project of the connection.

        :returns: Whether both work, and the balance and the project, or the reason why not. The text never holds the
            key.
        """
        once = Backoff(tries=1)
        try:
            with self:
                balance = self.client.run(api.get_credit_balance(), backoff=once)
                found = (
                    f"Roughy answers at {self.settings.base_url}; {balance} credits left; {self._test_project(once)}"
                )
        except RoughyError as err:
            return False, str(err)
        ignored = ", ".join(
            f"`{name}` (did you mean `{meant}`?)" if meant else f"`{name}`"
            for name, meant in self.settings.ignored.items()
        )
        return True, f"{found}; ignored in the extra: {ignored}" if ignored else found

    def _test_project(self, backoff: Backoff) -> str:
        if self.settings.project_id is None:
            return "no `project_id` in the extra, so each task has to name one"
        project = self.client.run(api.get_project(self.get_project_id()), backoff=backoff)
        archived = ", archived" if project.state == "archived" else ""
        return f"project {project.id} ({project.name}{archived})"

    # ---- Assets

    def get_asset(self, asset_id: str) -> RoughyAsset:
        """Read an asset.

        :param asset_id: The asset.
        :raises RoughyNotFoundError: If there is no such asset in the account.
        """
        return self.client.run(api.get_asset(asset_id))

    def list_assets(self, project_id: str | None = None, state: str | None = None) -> Iterator[RoughyAsset]:
        """Yield assets, newest first, page by page.

        The list may change meanwhile: you may delete each asset that you get. An asset that is on the list from the
        first page to the last is yielded exactly once. An asset that cannot be decoded is skipped and logged.

        :param project_id: Only those of one project; ``None`` for all.
        :param state: Only those in one state; ``None`` for all.
        :raises RoughyNotFoundError: If there is no such project.
        """
        return self._pages(lambda offset: api.list_assets(project_id=project_id, state=state, offset=offset))

    def create_asset(self, project_id: str | None, size_bytes: int, language: str | None = None) -> RoughyAsset:
        """Create an asset and open its upload. Each call creates a new one.

        :param project_id: The project of the asset; ``None`` for the connection's.
        :param size_bytes: The exact size of the upload, 64 bytes to 50 GiB.
        :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
        :raises RoughyConfigurationError: If an argument is unusable; nothing was sent.
        :raises RoughyInsufficientCreditsError: If the balance is not above zero.
        """
        return self.client.run(api.create_asset(self.get_project_id(project_id), size_bytes, language=language))

    def get_project_id(self, project_id: str | None = None) -> str:
        """Return a project id as it is, or the connection's.

        :param project_id: The id; ``None`` for the connection's.
        :raises RoughyConfigurationError: If there is neither, or the connection's is no id.
        """
        if project_id:
            return project_id
        found = self.settings.project_id
        if not found:
            misspelled = self.settings.misspelled
            raise RoughyConfigurationError(
                f"No project: pass `project_id`, or put it into the extra of connection {self.roughy_conn_id!r}"
                + (f". The extra has {misspelled}" if misspelled else "")
            )
        try:
            api.resource_id("project_id", found)
        except RoughyConfigurationError as err:
            raise RoughyConfigurationError(f"The extra of connection {self.roughy_conn_id!r}: {err}") from None
        return found

    def upload(
        self,
        asset: RoughyAsset,
        source: str | os.PathLike[str] | Source,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """Send a source's bytes to an asset, from the offset that its upload has reached, in constant memory.

        Continues after broken connections, timeouts, lost replies, 5xx, 429 and locks, as long as it makes progress.

        :param asset: An asset whose upload is open.
        :param source: A local path, or a URI that Airflow's object storage knows.
        :param on_progress: Called with the bytes handed over so far and the bytes in all, about once a MiB.
        :param fresh: Whether the asset was just created, so that its offset is 0.
        :raises RoughyConfigurationError: If all bytes of the asset have arrived.
        :raises RoughySourceError: If the source cannot be read or changed on the way.
        :raises RoughyUnsupportedMediaError: If Roughy does not take this kind of file.
        :raises RoughyUploadClosedError: If the asset waits for bytes, but has no upload to send them to.
        :raises RoughyUnconfirmedUploadError: If Roughy may have all bytes, but has not confirmed it yet.
        :raises RoughyUploadError: If the retries are used up.
        """
        found = source if isinstance(source, Source) else find_source(source)
        with found.open() as reader:
            open_uploader(self.client, asset, reader, on_progress, fresh=fresh).upload()
        lineage.report_upload(self, found.uri, asset.id)

    def upload_file(
        self,
        source: str | os.PathLike[str] | Source,
        project_id: str | None = None,
        *,
        language: str | None = None,
        source_conn_id: str | None = None,
    ) -> RoughyAsset:
        """Create an asset and upload a file to it, in one call.

        Roughy then prepares the asset: a sensor waits for that. A call that fails discards its asset; each call
        creates a new one. In a task that may be retried, use the operators, or :meth:`durable_upload`.

        :param source: A local path, or a URI that Airflow's object storage knows.
        :param project_id: The project of the asset; ``None`` for the connection's.
        :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
        :param source_conn_id: The Airflow connection of the source's storage.
        :returns: The asset, as it is after the upload.
        :raises RoughyConfigurationError: If an argument is unusable; nothing was sent.
        :raises RoughySourceError: If the source cannot be read or changed on the way.
        :raises RoughyInsufficientCreditsError: If the balance is not above zero.
        :raises RoughyUnsupportedMediaError: If Roughy does not take this kind of file.
        :raises RoughyUploadError: If the retries are used up.
        """
        upload = self.durable_upload(source, source_conn_id=source_conn_id)
        return self.get_asset(upload.run(self.get_project_id(project_id), language))

    def durable_upload(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        source_conn_id: str | None = None,
        memory: StateStore | None = None,
        log: Log | None = None,
    ) -> DurableUpload:
        """Return an upload that a later start can resume, as those of the operator.

        In a task of your own::

            upload = hook.durable_upload("s3://bucket/talk.mp3", memory=context.get("task_state_store"))
            asset_id = upload.run(hook.get_project_id(), "de")

        :param source: A local path, or a URI that Airflow's object storage knows.
        :param source_conn_id: The Airflow connection of the source's storage.
        :param memory: Stores the state of the upload for the next start: Airflow's task state store, or any object with
            ``get(key)`` and ``set(key, value)`` of plain JSON. With ``None``, a start that fails discards its asset.
        :param log: Logs events; by default the hook's own log.
        :raises RoughyUnusableSourceError: If the source is missing, not a file, unreadable, or not between 64 bytes and
            50 GiB.
        """
        found = source if isinstance(source, Source) else find_source(source, conn_id=source_conn_id)
        return DurableUpload(
            self.client,
            found,
            memory=memory,
            on_arrival=lambda asset_id: lineage.report_upload(self, found.uri, asset_id),
            log=log or self.log,
        )

    def cancel_upload(self, asset: RoughyAsset) -> bool:
        """Cancel an asset's upload, which removes the asset.

        :param asset: The asset.
        :returns: ``False`` if there was no open upload.
        """
        if asset.upload_url is None:
            return False
        return self._removed(api.cancel_upload(asset.upload_url))

    def delete_asset(self, asset_id: str, missing_ok: bool = True) -> bool:
        """Delete an asset and everything derived from it, at once and permanently.

        :param asset_id: The asset.
        :param missing_ok: Whether to accept that there is no such asset.
        :returns: ``False`` if there was no such asset.
        :raises RoughyNotFoundError: If there is no such asset and ``missing_ok`` is false.
        """
        return self._removed(api.delete_asset(asset_id), missing_ok=missing_ok)

    def _removed(self, call: Call[None], *, missing_ok: bool = True, tries: int | None = None) -> bool:
        try:
            self.client.run(call, backoff=None if tries is None else Backoff(tries=tries))
        except RoughyNotFoundError:
            if not missing_ok:
                raise
            return False
        return True

    # ---- Ledger

    def recheck_ledger(self, ledger: Ledger, *, forget: bool = False) -> list[Entry]:
        """Check which assets of a ledger exist at Roughy, and return the entries of those that do not.

        This lists the assets of each project, 100 a page, and sends a request for each asset that is not on the list.
        To forget one entry, call ``ledger.forget(entry.key)``.

        :param ledger: The ledger.
        :param forget: Whether to forget the entries, so that the next run ingests their recordings again.
        :raises RoughyLedgerError: If the ledger cannot be read or written.
        :raises RoughyError: If a request failed.
        """
        there: dict[str, set[str]] = {}
        gone = []
        for entry in ledger.entries():
            # An entry about an asset that a watcher announced: there is no recording to ingest again.
            if entry.asset_id is None or entry.state == "taken":
                continue
            project_id = str(entry.identity["project_id"])
            if project_id not in there:
                there[project_id] = self._assets_of(project_id)
            if entry.asset_id in there[project_id]:
                continue
            try:
                self.get_asset(entry.asset_id)
            except RoughyNotFoundError:
                gone.append(entry)
                if forget:
                    ledger.forget(entry.key)
        return gone

    def _assets_of(self, project_id: str) -> set[str]:
        try:
            return {asset.id for asset in self.list_assets(project_id=project_id)}
        except RoughyNotFoundError:
            return set()

    # ---- Cuts

    def create_cut(self, asset_id: str, script: str | None = None) -> RoughyCut:
        """Cut an asset, or return the cut that exists for the same asset and script. Cuts cost nothing.

        :param asset_id: The asset.
        :param script: The script to cut by, up to 100,000 characters; ``None`` lets Roughy decide what to keep.
        :raises RoughyConfigurationError: If an argument is unusable; nothing was sent.
        :raises RoughyAssetProcessingError: If the asset is not ready yet; ``retry_after`` is how many seconds to wait.
        :raises RoughyPaymentRequiredError: If the asset is not paid for.
        :raises RoughyAssetFailedError: If the asset has failed.
        """
        cut = self.run_for_asset(asset_id, api.create_cut(asset_id, script=script))
        lineage.report_making(self, CUT.name, cut.id, asset_id=asset_id)
        return cut

    def get_cut(self, cut_id: str) -> RoughyCut:
        """Read a cut.

        :param cut_id: The cut.
        :raises RoughyNotFoundError: If there is none in the account.
        """
        return self.client.run(api.get_cut(cut_id))

    def list_cuts(
        self, asset_id: str | None = None, project_id: str | None = None, state: str | None = None
    ) -> Iterator[RoughyCut]:
        """Yield cuts, newest first, page by page.

        :param asset_id: Only those of one asset; ``None`` for all.
        :param project_id: Only those of one project; ``None`` for all.
        :param state: Only those in one state; ``None`` for all.
        """
        return self._pages(
            lambda offset: api.list_cuts(asset_id=asset_id, project_id=project_id, state=state, offset=offset)
        )

    def export_cut(self, cut_id: str, format: str, frame_rate: float | str | None = None) -> RoughyExport:
        """Read a cut as the timeline file of an editor.

        :param cut_id: A completed cut.
        :param format: The format, by Roughy's name for it.
        :param frame_rate: Frames a second of the timeline, for a recording that has none of its own.
        :raises RoughyUnsupportedFormatError: If Roughy does not make this format of this cut.
        :raises RoughyFrameRateRequiredError: If the timeline needs a frame rate, and the recording has none.
        """
        return self._export(cut_id, api.export_cut(cut_id, format, frame_rate=frame_rate))

    def export_subtitles(self, cut_id: str, format: str = "srt") -> RoughyExport:
        """Read the captions of a cut.

        :param cut_id: A completed cut.
        :param format: ``"srt"`` or ``"vtt"``.
        :raises RoughyUnsupportedFormatError: If Roughy does not make this format of this cut.
        """
        return self._export(cut_id, api.export_subtitles(cut_id, format))

    def _export(self, cut_id: str, call: Call[RoughyExport]) -> RoughyExport:
        export = self.client.run(call)
        lineage.report(self, read=[lineage.resource_uri(CUT.name, cut_id)])
        return export

    # ---- Renders

    def create_render(self, asset_id: str, output: Mapping[str, Any], cut_id: str | None = None) -> RoughyRender:
        """Render an asset, or return the render that exists for the same request. Renders cost nothing.

        :param asset_id: The asset.
        :param output: The output, by the API's field names, e.g. ``{"format": "mp4", "resolution": "1080p"}``.
        :param cut_id: A completed cut of this asset; ``None`` renders the whole asset.
        :raises RoughyConfigurationError: If an argument is unusable; nothing was sent.
        :raises RoughyAssetProcessingError: If the asset is not ready yet.
        :raises RoughyCutNotReadyError: If the cut is not completed.
        :raises RoughyPaymentRequiredError: If the asset is not paid for.
        :raises RoughyAssetFailedError: If the asset has failed.
        :raises RoughyValidationError: If Roughy does not know such an output.
        """
        render = self.run_for_asset(asset_id, api.create_render(asset_id, output, cut_id=cut_id))
        lineage.report_making(self, RENDER.name, render.id, asset_id=asset_id, cut_id=cut_id)
        return render

    def get_render(self, render_id: str) -> RoughyRender:
        """Read a render.

        :param render_id: The render.
        :raises RoughyNotFoundError: If there is none in the account.
        """
        return self.client.run(api.get_render(render_id))

    def list_renders(
        self, asset_id: str | None = None, project_id: str | None = None, state: str | None = None
    ) -> Iterator[RoughyRender]:
        """Yield renders, newest first, page by page.

        Roughy does not document the filters of this list. So the asset and the state of each entry are checked here;
        the project cannot be, as a render does not have it.

        :param asset_id: Only those of one asset; ``None`` for all.
        :param project_id: Only those of one project; ``None`` for all.
        :param state: Only those in one state; ``None`` for all.
        """
        if asset_id is not None:
            asset_id = api.resource_id("asset_id", asset_id)
        renders = self._pages(
            lambda offset: api.list_renders(asset_id=asset_id, project_id=project_id, state=state, offset=offset)
        )
        for render in renders:
            if asset_id in (None, render.asset_id) and state in (None, render.state):
                yield render

    def cancel_render(self, render_id: str) -> bool:
        """Cancel a render that is not in a final state. A completed render stays.

        :param render_id: The render.
        :returns: ``False`` if there was nothing to cancel.
        """
        try:
            if Verdict.of(RENDER, self.get_render(render_id)).outcome is not Outcome.WAITING:
                return False
        except RoughyNotFoundError:
            return False
        try:
            return self._removed(api.cancel_render(render_id), tries=2)
        except RoughyApiError as error:
            # Roughy does not document whether it takes DELETE or POST.
            if error.status != 405:
                raise
        return self._removed(api.cancel_render(render_id, method="POST"), tries=2)

    def run_for_asset(self, asset_id: str, call: Call[T]) -> T:
        """Send a call that creates a cut or a render, and report nothing to Airflow's lineage.

        :param asset_id: The asset.
        :param call: The call, such as ``api.create_cut(asset_id)``.
        :raises RoughyPaymentRequiredError: If the asset is not paid for.
        :raises RoughyAssetFailedError: If the asset has failed.
        :raises RoughyError: As :meth:`create_cut` and :meth:`create_render`.
        """
        try:
            return self.client.run(call)
        except RoughyConflictError as error:
            if error.code == "asset_payment_required":
                raise RoughyPaymentRequiredError(asset_id, request_id=error.request_id) from error
            if error.code == "asset_failed":
                raise RoughyAssetFailedError(
                    asset_id, error_code=error.code, error_message=error.message, request_id=error.request_id
                ) from error
            raise

    # ---- Downloads

    def download(
        self,
        target: str | os.PathLike[str] | ObjectStoragePath,
        *,
        asset_id: str | None = None,
        render_id: str | None = None,
        target_conn_id: str | None = None,
        overwrite: Overwrite = "replace",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Write an asset's original or a finished render to a target, completely or not at all, in constant memory.

        Continues after broken connections, timeouts, 5xx, 429 and expired links, as long as it makes progress. The key
        never goes to the storage that the bytes come from.

        :param target: A local path, a URI that Airflow's object storage knows, or an ``ObjectStoragePath``. A target
            that ends with a slash, or that exists as a folder, is a folder; the file in it is named by its id.
        :param asset_id: The asset. Give this or ``render_id``.
        :param render_id: The render.
        :param target_conn_id: The Airflow connection of the target's storage.
        :param overwrite: What to do about a file that exists: ``"replace"`` it; ``"skip"`` the download if it has the
            size that Roughy names, and replace it otherwise; or ``"fail"`` if it has another size.
        :param on_progress: Called with the bytes so far and the bytes in all, after each block of at most 1 MiB.
        :returns: The target's URI, with the name of the file and without credentials.
        :raises RoughyConfigurationError: If neither or both ids are given.
        :raises RoughyNotReadyError: If the asset is not ready, or the render not completed.
        :raises RoughyFailedError: If the asset or the render failed.
        :raises RoughyUnusableTargetError: If the target may not be written.
        :raises RoughyTargetExistsError: If another file exists, and ``overwrite`` is ``"fail"``.
        :raises RoughyTargetError: If the target could not be written.
        :raises RoughyDownloadError: If the retries are used up.
        """
        return self.fetch(
            target,
            asset_id=asset_id,
            render_id=render_id,
            target_conn_id=target_conn_id,
            overwrite=overwrite,
            on_progress=on_progress,
        ).uri

    def fetch(
        self,
        target: str | os.PathLike[str] | ObjectStoragePath,
        *,
        asset_id: str | None = None,
        render_id: str | None = None,
        target_conn_id: str | None = None,
        overwrite: Overwrite = "replace",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Downloaded:
        """Download as :meth:`download` does, and return also whether the file was written or existed already.

        The parameters and errors are those of :meth:`download`.
        """
        chosen = [(kind, id) for kind, id in ((ASSET, asset_id), (RENDER, render_id)) if id]
        if not chosen:
            raise RoughyConfigurationError(
                "A download needs `asset_id` or `render_id`, and both are empty; if one is a template, it rendered to "
                "nothing"
            )
        if len(chosen) > 1:
            raise RoughyConfigurationError("A download takes `asset_id` or `render_id`, not both")
        check_overwrite(overwrite)
        ((kind, id),) = chosen
        downloaded = download(
            self.client,
            kind,
            id,
            target,
            conn_id=target_conn_id,
            overwrite=overwrite,
            on_progress=on_progress,
            log=self.log,
        )
        lineage.report(self, read=[lineage.resource_uri(kind.name, id)], written=[asset_uri(downloaded.uri)])
        return downloaded

    # ---- Projects, credits, users

    def create_project(self, name: str) -> RoughyProject:
        """Create a project.

        :param name: Free text, 1 to 256 characters.
        """
        return self.client.run(api.create_project(name))

    def get_project(self, project_id: str) -> RoughyProject:
        """Read a project.

        :param project_id: The project.
        :raises RoughyNotFoundError: If there is none in the account.
        """
        return self.client.run(api.get_project(project_id))

    def list_projects(self, state: str | None = None) -> Iterator[RoughyProject]:
        """Yield projects, newest first, page by page.

        :param state: ``"active"`` (Roughy's default) or ``"archived"``.
        """
        return self._pages(lambda offset: api.list_projects(state=state, offset=offset))

    def update_project(self, project_id: str, name: str | None = None, state: str | None = None) -> RoughyProject:
        """Rename, archive or reopen a project.

        :param project_id: The project.
        :param name: Its new name, 1 to 256 characters; ``None`` leaves it.
        :param state: ``"active"`` or ``"archived"``; ``None`` leaves it.
        :raises RoughyConfigurationError: If nothing is to be changed; nothing was sent.
        :raises RoughyNotFoundError: If there is no such project, or it is not yours.
        """
        return self.client.run(api.update_project(project_id, name=name, state=state))

    def delete_project(self, project_id: str, missing_ok: bool = True) -> bool:
        """Delete a project with its assets, cuts and renders, at once and permanently.

        :param project_id: The project.
        :param missing_ok: Whether to accept that there is no such project.
        :returns: ``False`` if there was no such project.
        :raises RoughyNotFoundError: If there is no such project and ``missing_ok`` is false.
        """
        return self._removed(api.delete_project(project_id), missing_ok=missing_ok)

    def get_credit_balance(self) -> int:
        """Return the spendable credits. A credit pays one started minute of media."""
        return self.client.run(api.get_credit_balance())

    def list_credit_entries(self, since: date | None = None) -> Iterator[RoughyCreditEntry]:
        """Yield the entries of the credit account, newest first, page by page.

        :param since: Only those from this day on, in UTC; ``None`` for all.
        """
        for entry in self._pages(lambda offset: api.list_credit_entries(offset=offset)):
            moment = None if since is None else decode.timestamp(entry.created_at)
            if since is not None and moment is not None and moment.astimezone(UTC).date() < since:
                return
            yield entry

    def get_credit_report(self, days: int = 30) -> list[RoughyCreditDay]:
        """Return what became of the credits on each of the last days, in UTC, the newest first.

        :param days: How many days, today included.
        """
        today = datetime.now(UTC).date()
        balance = self.get_credit_balance()
        entries = self.list_credit_entries(since=today - timedelta(days=max(days, 1) - 1))
        return api.credits_by_day(entries, balance=balance, today=today, days=days)

    def get_profile(self) -> RoughyUser:
        """Read the profile of the key's owner."""
        return self.client.run(api.get_profile())

    # ---- Webhook endpoints

    def create_webhook_endpoint(
        self, url: str, event_types: Iterable[str], description: str | None = None
    ) -> RoughyWebhookEndpoint:
        """Create a webhook endpoint. Each call creates a new one.

        Roughy's dashboard shows the signing secret. If the reply has it, too, it is in the result's
        ``signing_secret``, which neither ``repr`` nor XCom shows.

        :param url: The https URL that Roughy sends webhooks to. Plain http leads to this machine only, for the
            emulator.
        :param event_types: The events, by Roughy's names, e.g. ``["asset.ready", "asset.failed"]``.
        :param description: Free text.
        :raises RoughyConfigurationError: If an argument is unusable; nothing was sent.
        :raises RoughyValidationError: If Roughy does not know such an event.
        """
        return self.client.run(api.create_webhook_endpoint(url, event_types, description=description))

    def list_webhook_endpoints(self) -> Iterator[RoughyWebhookEndpoint]:
        """Yield the webhook endpoints, page by page."""
        return self._pages(lambda offset: api.list_webhook_endpoints(offset=offset))

    def delete_webhook_endpoint(self, endpoint_id: str, missing_ok: bool = True) -> bool:
        """Delete a webhook endpoint, so that Roughy sends it no more webhooks.

        :param endpoint_id: The endpoint.
        :param missing_ok: Whether to accept that there is no such endpoint.
        :returns: ``False`` if there was no such endpoint.
        :raises RoughyNotFoundError: If there is no such endpoint and ``missing_ok`` is false.
        """
        return self._removed(api.delete_webhook_endpoint(endpoint_id), missing_ok=missing_ok)

    def _pages(self, read: Callable[[int], Call[Page[R]]]) -> Iterator[R]:
        listing = api.Listing(read)
        while (call := listing.next_call()) is not None:
            yield from listing.take(self.client.run(call))

    # ---- For event loops

    async def aopen(self) -> AsyncClient:
        """Return a new client for the running event loop; the caller closes it.

        :raises RoughyMissingConnectionError: If Airflow has no such connection.
        :raises RoughyConfigurationError: If the connection is unusable.
        """
        # The first import takes tens of milliseconds, which would block a triggerer's event loop.
        module = await asyncio.to_thread(import_module, "airflow_provider_roughy.http.client")
        client: AsyncClient = await module.AsyncClient.open(await self.aget_settings())
        await asyncio.to_thread(metrics.start)
        return client

    async def aget_asset(self, asset_id: str) -> RoughyAsset:
        """Read an asset, in an event loop. See :meth:`get_asset`."""
        async with await self.aopen() as client:
            return await client.run(api.get_asset(asset_id))

    async def alist_assets(self, project_id: str | None = None, state: str | None = None) -> AsyncIterator[RoughyAsset]:
        """Yield assets, newest first, in an event loop. See :meth:`list_assets`."""
        listing = api.Listing(lambda offset: api.list_assets(project_id=project_id, state=state, offset=offset))
        async with await self.aopen() as client:
            while (call := listing.next_call()) is not None:
                for asset in listing.take(await client.run(call)):
                    yield asset
