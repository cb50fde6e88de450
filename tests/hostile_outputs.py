"""49 outputs that run scripts, send requests or navigate, each in another way.

``{u}`` stands for an address of a server that must never be asked, ``{p}`` for a UDP port there, and ``HIT`` for a
script that reports to the page. The first ones are for frames in which no script may run, the others are scripts for
frames in which scripts run and reach nothing.
"""

from __future__ import annotations

STILL = [
    "<script>HIT</script>",
    "<script src={u}></script>",
    "<img src=x onerror=HIT>",
    "<svg onload=HIT></svg>",
    "<svg><script>HIT</script></svg>",
    "<body onload=HIT>",
    "<details open ontoggle=HIT>x</details>",
    "<video src=x onerror=HIT></video>",
    "<style>@keyframes k{{}}</style><p style='animation:k 1s' onanimationstart=HIT>x</p>",
    '<iframe srcdoc="<script>HIT</script>"></iframe>',
    "<iframe src='javascript:HIT'></iframe>",
    "<iframe src={u}></iframe>",
    "<object data={u}></object>",
    "<embed src={u}>",
    "<meta http-equiv=refresh content='0;url={u}'>",
    "<base href={u}/><img src=x>",
    "<link rel=stylesheet href={u}>",
    "<style>@import url({u});</style>",
    "<style>body{{background:url({u})}}</style>",
    "<style>@font-face{{font-family:x;src:url({u})}}p{{font-family:x}}</style><p>x</p>",
    "<div style='background:url({u})'>x</div>",
    "<img src={u}>",
    "<img srcset='{u} 1x'>",
    "<picture><source srcset={u}><img></picture>",
    "<video poster={u}></video>",
    "<audio src={u} preload=auto></audio>",
    "<link rel=preload as=image href={u}>",
    "<link rel=preconnect href={u}>",
    "<svg width=9 height=9><image href={u} width=9 height=9 /></svg>",
    "<form action={u}><input name=a></form><script>document.forms[0].submit()</script>",
    "<a id=l href={u} target=_blank>x</a><script>l.click()</script>",
]
SCRIPTS = [
    "var f=document.createElement('iframe');document.body.append(f);var c=new f.contentWindow.RTCPeerConnection("
    "{{iceServers:[{{urls:'stun:127.0.0.1:{p}'}}]}});c.createDataChannel('x');"
    "c.createOffer().then(o=>c.setLocalDescription(o))",
    "fetch('{u}',{{mode:'no-cors'}})",
    "navigator.sendBeacon('{u}','x')",
    "new WebSocket('{w}')",
    "location='{u}'",
    "top.location='{u}'",
    "open('{u}')",
    "new Image().src='{u}'",
    "import('{u}').catch(()=>0)",
    "new EventSource('{u}')",
    "var x=new XMLHttpRequest();x.open('GET','{u}');x.send()",
    "new Worker(URL.createObjectURL(new Blob([`fetch('{u}',{{mode:'no-cors'}})`])))",
    "var f=document.createElement('iframe');f.src='{u}';document.body.append(f)",
    "var l=document.createElement('link');l.rel='prefetch';l.href='{u}';document.head.append(l)",
    "var f=document.createElement('form');f.action='{u}';document.body.append(f);f.submit()",
    "parent.document.documentElement.dataset.reached=1;HIT",
    "var c=new RTCPeerConnection({{iceServers:[{{urls:'stun:127.0.0.1:{p}'}}]}});c.createDataChannel('x');"
    "c.createOffer().then(o=>c.setLocalDescription(o));HIT",
    "var f=document.createElement('iframe');f.srcdoc=`<script>var c=new RTCPeerConnection({{iceServers:"
    "[{{urls:'stun:127.0.0.1:{p}'}}]}});c.createDataChannel('x');c.createOffer().then(o=>c.setLocalDescription(o))"
    "</`+`script>`;document.body.append(f);HIT",
]


def report(number: int) -> str:
    """Return a script that tells the page that document ``number`` ran a script."""
    return f"top.postMessage({{hit:{number}}},`*`)"


def armed(host: str, udp: int, documents: list[str], first: int = 0) -> list[str]:
    """Return the documents with an address of this server in each.

    Args:
        host: host and port.
        udp: the port that counts packets.
        documents: from this module.
        first: the number of the first one.
    """
    return [
        each.format(u=f"http://{host}/{n}", w=f"ws://{host}/{n}", p=udp).replace("HIT", report(n))
        for n, each in enumerate(documents, first)
    ]
