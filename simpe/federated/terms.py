"""What the parties of a federation agree on, all of it public, and what follows from it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simpe.privacy.accounting import Charge
from simpe.privacy.mechanism import skellam_support

if TYPE_CHECKING:
    from simpe.config import RunConfig

Trust = Literal["central", "distributed", "local"]

MOST_EPSILON = 50.0  # of the distributed model: see accounting, what many draws are cut by
MOST_OF_A_CLIENT = 10_000  # rows, where a client is the unit (as of any unit)
_ROUNDED = 1 + 1e-12


class Federation(BaseModel):
    """Who is trusted with what, and how many there are.

    ``trust`` is ``central`` (the server sees every client's votes, and adds the noise), ``distributed`` (each client
    adds a share of the noise, and the server sees the masked sum alone) or ``local`` (each client adds all of the
    noise, and need not trust anybody). ``unit`` is a ``row`` or a whole ``client``. ``clients`` take part; ``dropouts``
    of them, at most, may fall silent in a release, and ``colluders``, at most, tell the server all that they know (the
    distributed model counts the noise of none of these). ``rows`` of a client take part, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trust: Trust = "distributed"
    unit: Literal["row", "client"] = "row"
    clients: int = Field(ge=2, le=10_000)
    dropouts: int = Field(default=0, ge=0)
    colluders: int = Field(default=0, ge=0)
    rows: int = Field(default=MOST_OF_A_CLIENT, ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _fits(self) -> Federation:
        if self.survivors < 2:
            raise ValueError(f"clients: {self.clients} less {self.dropouts} drop-outs leave fewer than 2; have more")
        if self.unit == "client" and self.rows > MOST_OF_A_CLIENT:
            raise ValueError(f"rows: of a client that is the unit {MOST_OF_A_CLIENT} take part at most")
        if self.trust == "distributed":
            if self.honest < 2:
                raise ValueError("clients: fewer than 2 are left to add noise, less drop-outs and colluders; have more")
            # Else a server could tell half of the clients that one is there and the others that it is not, and with the
            # colluders' help learn both of the secrets that hide its vector.
            if 2 * self.survivors <= self.clients + self.colluders:
                raise ValueError(
                    "dropouts: with this many, a server could unmask a single client; twice the clients less "
                    "drop-outs must be more than clients and colluders together"
                )
        elif self.colluders:
            raise ValueError(f"colluders: nothing is assumed of them in the {self.trust} model; leave it out")
        return self

    @property
    def survivors(self) -> int:
        """Clients that a release needs."""
        return self.clients - self.dropouts

    @property
    def honest(self) -> int:
        """Clients whose noise is counted."""
        return self.survivors - self.colluders

    @property
    def spread(self) -> float:
        """What the noise of a sum comes to, in standard deviations of what is charged, when everybody takes part."""
        if self.trust == "central":
            return 1.0
        return float((self.clients / (self.honest if self.trust == "distributed" else 1)) ** 0.5)

    def share(self, charge: Charge) -> float:
        """Variance of each client's share of the noise, such that the honest ones' alone is what is charged."""
        return charge.sigma**2 / self.honest * _ROUNDED

    def most(self, charge: Charge) -> int:
        """Bound on a bin of one client's vector before noise."""
        return charge.sensitivity * (1 if self.unit == "client" else self.rows)

    def bits(self, charge: Charge) -> int:
        """Bits of the modulus, 32 or 64: no sum of honest vectors, noise included, can wrap around."""
        bound = self.clients * (self.most(charge) + skellam_support(self.share(charge)))
        return 32 if bound < 2**31 else 64


def digest(config: RunConfig) -> str:
    """Names the agreement: SHA-256 of all that is public and common in a configuration."""
    own = {"private", "out", "ledger", "label", "device", "run", "modules"}
    return hashlib.sha256(config.model_dump_json(exclude=own).encode()).hexdigest()
