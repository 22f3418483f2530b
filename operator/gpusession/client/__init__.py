"""The client of a Session: `connect` keeps its heartbeat, whatever becomes of gateways.

A library: it logs by the standard library (logger `gpusession.client`, never a token), reads
no environment and no settings, and pulls in nothing of the operator but words and errors.
"""

from gpusession.client.backoff import Timing as Timing
from gpusession.client.credentials import KubernetesIdentity as KubernetesIdentity
from gpusession.client.errors import ClientError as ClientError
from gpusession.client.errors import GatewayUnreachable as GatewayUnreachable
from gpusession.client.errors import GaveUp as GaveUp
from gpusession.client.errors import Left as Left
from gpusession.client.errors import SessionEnded as SessionEnded
from gpusession.client.errors import SessionRevoked as SessionRevoked
from gpusession.client.errors import TokenRefused as TokenRefused
from gpusession.client.errors import WrongSession as WrongSession
from gpusession.client.opening import connect as connect
from gpusession.client.opening import hold as hold
from gpusession.client.session import Session as Session
from gpusession.client.standing import Ended as Ended
from gpusession.client.standing import Event as Event
from gpusession.client.standing import PendingDestroy as PendingDestroy
from gpusession.client.standing import Restored as Restored
