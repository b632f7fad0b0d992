"""DynamoDB Local, Amazon's own emulator, which an npm package carries.

It keeps its tables in memory: a restart loses them. All credentials and regions see the same ones.
"""

import re
import subprocess

from provision.errors import UnavailableError
from provision.packages import npm_package
from provision.site import Site

PACKAGE = "amplify-dynamodb-simulator@2.9.30"
SHA512 = (
    "c5379e44bbf311fab2779961ddb1f8734907bd21c79a6843e590ec1c5280439836665e89aa515dbad6908422"
    "c7cf1129e91cb5a3b4c1ea7888a17b9002749ec1"
)
OLDEST_JAVA = 17


def create(site: Site) -> None:
    """One emulator."""
    java = site.program("java")
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', printed)
    if found is None or int(found.group(1)) < OLDEST_JAVA:
        raise UnavailableError(f"needs Java {OLDEST_JAVA} or newer, {java} is another")
    files = npm_package(site.cache / "dynamodb", PACKAGE, SHA512, "package/emulator")
    libraries = files / "DynamoDBLocal_lib"
    port = site.port()
    argv = [
        # To compile thoroughly, and to collect in parallel, costs more than it saves in minutes.
        *[java, "-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"],
        *[f"-Djava.library.path={libraries}"],
        *["-jar", str(files / "DynamoDBLocal.jar"), "-inMemory", "-sharedDb", "-port", str(port)],
    ]
    site.describe(f"http://127.0.0.1:{port}", PACKAGE.partition("@")[2])
    site.await_ready(site.spawn("dynamodb", argv, port, "http", site.data_dir))
