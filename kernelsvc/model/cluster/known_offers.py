"""The functions that one connection to a front offers for all sessions, which nodes that join later get too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from kernelsvc.errors import QuotaExceeded
from kernelsvc.model.tool_calls.offers import Offer, ProviderId

#: Most functions that are kept for one connection, and most bytes of their definitions.
MAX_KNOWN, MAX_BYTES = 1000, 8 * 1024 * 1024


@dataclass(frozen=True)
class OfProvider:
    """The functions of one provider.

    Attributes:
        provider: It.
        offers: The functions, by name.
        holding: The calls that it said to hold.
    """

    provider: ProviderId
    offers: Mapping[str, Offer]
    holding: Sequence[str] = ()


@dataclass(frozen=True)
class KnownOffers:
    """The offers that are in force.

    Attributes:
        providers: The providers with functions, by id.
    """

    providers: Mapping[str, OfProvider] = field(default_factory=dict)

    def offer(
        self, provider: ProviderId, offers: Sequence[Offer], holding: Sequence[str], *, replace: bool
    ) -> KnownOffers:
        """Return them with functions of a provider added, or replaced.

        Raises:
            QuotaExceeded: There would be too many.
        """
        known = self.providers.get(provider.id)
        # A process that was started anew offers all of its functions again.
        same = known is not None and known.provider.instance == provider.instance
        before = known.offers if known is not None and same and not replace else {}
        made = OfProvider(provider, {**before, **{each.tool: each for each in offers}}, holding)
        kept = {**self.providers, provider.id: made}
        together = [offer for each in kept.values() for offer in each.offers.values()]
        if len(together) > MAX_KNOWN or sum(len(msgspec.json.encode(each)) for each in together) > MAX_BYTES:
            raise QuotaExceeded(
                f"This connection offers more than {MAX_KNOWN} functions for all sessions, or their definitions have "
                f"more than {MAX_BYTES >> 20} MiB. Withdraw some, or offer them in single sessions."
            )
        return KnownOffers({name: each for name, each in kept.items() if each.offers})

    def withdraw(self, names: Collection[str] | None) -> KnownOffers:
        """Return them without functions of these names, of any provider. None: without all."""
        if names is None:
            return KnownOffers()
        left = {
            name: OfProvider(each.provider, {n: o for n, o in each.offers.items() if n not in names}, each.holding)
            for name, each in self.providers.items()
        }
        return KnownOffers({name: each for name, each in left.items() if each.offers})
