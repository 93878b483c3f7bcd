# Runs the crawl of one of cloud-init's data sources, and prints what it got as JSON.
#
#   crawl.py CloudStack ADDRESS SCRATCH
#   crawl.py Ec2 ADDRESS SCRATCH          (as on a platform that is not AWS: no session token)
#   crawl.py AWS ADDRESS SCRATCH          (as on AWS: nothing without one)
import base64, json, os, sys

from cloudinit import distros, helpers
from cloudinit.sources import DataSourceCloudStack, DataSourceEc2

kind, address, scratch = sys.argv[1:]
for folder in ("cloud/seed", "run"):
    os.makedirs(os.path.join(scratch, folder), exist_ok=True)
paths = helpers.Paths({
    "cloud_dir": os.path.join(scratch, "cloud"),
    "run_dir": os.path.join(scratch, "run"),
    "templates_dir": "/etc/cloud/templates",
})
distro = distros.fetch("debian")("debian", {}, paths)
if kind == "CloudStack":
    DataSourceCloudStack.get_vr_address = lambda *a, **k: address
    config = {"datasource": {"CloudStack": {"max_wait": 10, "timeout": 5}}}
    source = DataSourceCloudStack.DataSourceCloudStack(config, distro, paths)
else:
    if kind == "AWS":
        DataSourceEc2.identify_platform = lambda: DataSourceEc2.CloudNames.AWS
    url = "http://" + address
    config = {"datasource": {"Ec2": {"strict_id": False, "metadata_urls": [url], "max_wait": 10, "timeout": 5}}}
    source = DataSourceEc2.DataSourceEc2(config, distro, paths)
    source.metadata_urls = [url]
ok = source._get_data()


def text(data):
    if isinstance(data, bytes):
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "base64:" + base64.b64encode(data).decode()
    return data


print(json.dumps({
    "ok": ok,
    "id": source.get_instance_id(),
    "host": source.get_hostname().hostname,
    "zone": source.availability_zone,
    "keys": [key for key in source.get_public_ssh_keys() if key],
    "password": source.get_config_obj().get("password") if kind == "CloudStack" else None,
    "userdata": text(source.userdata_raw),
    "metadata": source.metadata,
    "identity": getattr(source, "identity", None),
}, default=text))
