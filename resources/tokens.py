"""The user's MAST token: where it is looked for.

Put here how a secret is found. Keep out what it is used for; it is never logged, stored or put into a message.
"""

from __future__ import annotations

import logging
import os

ENVIRONMENT_VARIABLE = "MAST_API_TOKEN"
KEYRING_SERVICE, KEYRING_USER = "astroquery:mast.stsci.edu.token", "masttoken"  # where astroquery keeps it

logger = logging.getLogger(__name__)


def find_token() -> str | None:
    """The token from the environment, else from the keyring, else None.

    A keyring that is missing or locked is the normal case on a server: it means that there is no token.
    """
    token = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    return token or _token_of_keyring()


def _token_of_keyring() -> str | None:
    import keyring
    from keyring.errors import KeyringError

    try:
        token = keyring.get_password(KEYRING_SERVICE, KEYRING_USER)
    except (KeyringError, OSError, RuntimeError) as error:  # backends raise errors of their own kinds
        logger.debug("no MAST token from the keyring: %s", type(error).__name__)
        return None
    return token.strip() or None if token else None
