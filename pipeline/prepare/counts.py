"""How many events were read, and what each filter removed of them."""

from pipeline.errors import LonghaulError


class Counts:
    """The events that each filter removed, in the order applied, and how many are left."""

    def __init__(self, events: int) -> None:
        self.removed: dict[str, int] = {"events_read": events}
        self.left = events

    def note(self, name: str, removed: int) -> None:
        """Filter ``name`` removed so many; raises LonghaulError where it left nothing."""
        self.removed[name] = removed
        if removed == self.left:
            raise LonghaulError(
                f"no events left: {name} removed the last {removed} of "
                f"{self.removed['events_read']} read; relax it"
            )
        self.left -= removed
