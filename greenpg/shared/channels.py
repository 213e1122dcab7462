"""Who listens to which channel, and which commands bring the server there. No I/O; the reader's mutex is held."""

from __future__ import annotations

from psycopg2.extensions import Notify

from .commands import ListenCommand
from .mailbox import RECONNECTED, Gap, Mailbox

#: A name longer than that is cut off by the server: NAMEDATALEN less one.
LONGEST_CHANNEL_BYTES = 63
#: The server takes less than 8000.
LONGEST_PAYLOAD_BYTES = 7999

#: Channels in one command: its answer then comes in one packet.
_BATCH = 50


def checked_channel(channel: str) -> str:
    """ValueError, or TypeError, if the server wouldn't listen to exactly this channel."""
    if not isinstance(channel, str):
        raise TypeError(f"a channel must be a string, not {type(channel).__name__}")
    length = len(channel.encode())
    if not 0 < length <= LONGEST_CHANNEL_BYTES or "\0" in channel:
        raise ValueError(
            f"{channel!r} can't be a channel: it has {length} bytes, and 1 to {LONGEST_CHANNEL_BYTES} are possible, "
            "without NUL"
        )
    return channel


def checked_payload(payload: str) -> str:
    """ValueError, or TypeError, if the server wouldn't take this payload."""
    if not isinstance(payload, str):
        raise TypeError(f"a payload must be a string, not {type(payload).__name__}")
    length = len(payload.encode())
    if length > LONGEST_PAYLOAD_BYTES:
        raise ValueError(
            f"the payload has {length} bytes, and PostgreSQL takes at most {LONGEST_PAYLOAD_BYTES}: "
            "store it in a table, and notify its key"
        )
    if "\0" in payload:
        raise ValueError("the payload contains NUL, which PostgreSQL can't take")
    return payload


class Channels:
    """The mailboxes by their channels, and what the server is known to listen to."""

    def __init__(self) -> None:
        #: Mailboxes with the same channels get the same list of notifications.
        self._groups: dict[frozenset[str], set[Mailbox]] = {}
        self._groups_of: dict[str, list[frozenset[str]]] = {}
        #: Mailboxes whose subscribers wait for the server's confirmation.
        self._pending: set[Mailbox] = set()
        self._listening: set[str] = set()
        #: Channels that were wanted or given up since the last command, and are to be looked at.
        self._changed: dict[str, None] = {}
        #: Of a refused command with several channels: each has to be tried alone.
        self._suspects: set[str] = set()
        #: Mailboxes that the last connection served, and that have to be told when the present one does.
        self._gap_is_due: set[Mailbox] = set()

    def add(self, mailbox: Mailbox) -> None:
        self._groups.setdefault(mailbox.channels, set()).add(mailbox)
        for channel in mailbox.channels:
            groups = self._groups_of.setdefault(channel, [])
            if mailbox.channels not in groups:
                groups.append(mailbox.channels)
            self._changed[channel] = None
        self._pending.add(mailbox)
        self._tell_those_complete([mailbox])

    def remove(self, mailbox: Mailbox) -> None:
        """Harmless if it was removed before."""
        self._pending.discard(mailbox)
        self._gap_is_due.discard(mailbox)
        group = self._groups.get(mailbox.channels)
        if group is None or mailbox not in group:
            return
        group.remove(mailbox)
        if group:
            return
        del self._groups[mailbox.channels]
        for channel in mailbox.channels:
            groups = self._groups_of[channel]
            groups.remove(mailbox.channels)
            if not groups:
                del self._groups_of[channel]
                self._changed[channel] = None

    def mailboxes(self) -> list[Mailbox]:
        return [mailbox for group in self._groups.values() for mailbox in group]

    @property
    def someone_waits(self) -> bool:
        """Whether a subscriber waits for the server's confirmation."""
        return bool(self._pending)

    # -- what the server is told

    def start_over(self) -> None:
        """The connection is lost: the next one has to listen to everything, and whoever was served misses something."""
        self._listening.clear()
        self._changed = dict.fromkeys(self._groups_of)
        self._gap_is_due.update(mailbox for mailbox in self.mailboxes() if mailbox.is_confirmed)

    def next_command(self) -> ListenCommand | None:
        """What is to be told the server next; None: it listens to all that is wanted."""
        command = ListenCommand()
        while self._changed and len(command.listen) + len(command.unlisten) < _BATCH:
            channel = next(iter(self._changed))
            is_wanted, is_heard = channel in self._groups_of, channel in self._listening
            if is_wanted and not is_heard:
                if channel in self._suspects:
                    if command.listen or command.unlisten:
                        break
                    del self._changed[channel]
                    return ListenCommand([channel])
                command.listen.append(channel)
            elif is_heard and not is_wanted:
                command.unlisten.append(channel)
                self._listening.discard(channel)  # whoever wants it from now on has to wait
            del self._changed[channel]
        return command if command.listen or command.unlisten else None

    def done(self, command: ListenCommand) -> None:
        """The server has confirmed the command."""
        self._listening.update(command.listen)
        self._suspects.difference_update(command.listen)
        # Not all of them may be wanted any more; that has been noted in _changed.
        self._tell_those_complete(list(self._pending))
        self._tell_those_complete(list(self._gap_is_due))

    def _tell_those_complete(self, mailboxes: list[Mailbox]) -> None:
        for mailbox in mailboxes:
            if not mailbox.channels <= self._listening:
                continue
            if mailbox in self._gap_is_due:
                self._gap_is_due.discard(mailbox)
                mailbox.deliver((Gap(RECONNECTED),))
            elif mailbox in self._pending:
                self._pending.discard(mailbox)
                mailbox.is_confirmed = True
                if mailbox.confirmation is not None:
                    mailbox.confirmation.set()

    def refused(self, command: ListenCommand, error: Exception) -> bool:
        """The server has refused the command. False: those who were confirmed before can't be served by it."""
        if len(command.listen) + len(command.unlisten) > 1:
            self._suspects.update(command.listen)
            self._changed.update(dict.fromkeys(command.listen + command.unlisten))
            self._listening.update(command.unlisten)
            return True
        for channel in command.listen:
            self._suspects.discard(channel)
            mailboxes = [mailbox for key in self._groups_of.get(channel, ()) for mailbox in self._groups[key]]
            if any(mailbox.is_confirmed for mailbox in mailboxes):
                return False
            for mailbox in mailboxes:
                mailbox.error = error
                self.remove(mailbox)
                mailbox.wake()
        return True

    # -- what the server tells

    def dispatch(self, notifications: list[Notify]) -> None:
        """Deliver the notifications to all who have subscribed to their channels, in this order."""
        by_group: dict[frozenset[str], list[Notify]] = {}
        groups_of = self._groups_of
        for notification in notifications:
            for group in groups_of.get(notification.channel, ()):
                by_group.setdefault(group, []).append(notification)
        for group, theirs in by_group.items():
            for mailbox in self._groups[group]:
                mailbox.deliver(theirs)

    def sweep(self) -> None:
        """Remove the mailboxes of subscriptions that were forgotten without being closed."""
        for mailbox in self.mailboxes():
            if mailbox.is_abandoned:
                self.remove(mailbox)
