"""Lets in the one caller that may give orders: the controller, by its ServiceAccount token."""

from collections.abc import Callable
from datetime import timedelta

from gpusession.api.release import TOKEN_AUDIENCE
from gpusession.errors import Refused
from gpusession.kube.reviews import UNAUTHENTICATED as UNAUTHENTICATED
from gpusession.kube.reviews import BearerCheck, KubeReviews

FORBIDDEN = "Forbidden"


class CallerCheck:
    """Checks bearer tokens; a good one is believed for the time of the cache."""

    def __init__(
        self,
        reviews: KubeReviews,
        *,
        allowed_caller: str,
        cache: timedelta,
        monotonic: Callable[[], float],
    ) -> None:
        self._bearer = BearerCheck(
            reviews, audience=TOKEN_AUDIENCE, cache=cache, monotonic=monotonic
        )
        self._allowed_caller = allowed_caller

    async def check(self, authorization: str | None) -> None:
        """Return for the allowed caller.

        Raises Refused with reason UNAUTHENTICATED or FORBIDDEN, and ApiUnavailable where
        an unknown token could not be judged.
        """
        identity = await self._bearer.identify(authorization)
        if identity.username != self._allowed_caller:
            message = f"{identity.username} may not give orders to agents"
            raise Refused(message, reason=FORBIDDEN)
