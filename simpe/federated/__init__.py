"""Many data owners: each votes on its own rows, and only vectors of votes leave it.

``terms`` is what all have agreed on, ``wire`` how they write to one another, ``masks`` how vectors are added up without
showing one, ``member`` a client with its rows and its ledger, ``door`` the server's way to all of them, which is a
:class:`simpe.PrivateData` to the engine, ``commands`` what the command line does, and ``flower`` and ``app`` how the
messages travel: by Flower, whose processes never see a row.
"""
